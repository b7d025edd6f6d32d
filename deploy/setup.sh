#!/bin/sh
# Installs what building, testing and the demo need and this machine lacks, where it may: as root on a
# Debian-like system. Elsewhere it names the one command and exits 1. Asks nothing; quick when all is there.
set -u

packages=''
words=''
need() { # PACKAGE WORDS...
    packages="$packages $1"
    shift
    words="${words:+$words, }$*"
}
have() { command -v "$1" >/dev/null 2>&1; }

java_major() {
    "$1" -version 2>&1 | sed -n 's/.*version "\(1\.\)\{0,1\}\([0-9]*\).*/\2/p' | head -n 1
}
java=java
[ -n "${JAVA_HOME:-}" ] && [ -x "$JAVA_HOME/bin/java" ] && java=$JAVA_HOME/bin/java
have "$java" && major=$(java_major "$java") || major=0
if [ "${major:-0}" -lt 17 ]; then need JAVA 'a Java runtime (17 or newer)'; fi
have mvn || need maven 'Apache Maven'

postgres_found=no
old_ifs=$IFS
IFS=:
for folder in ${PG_BIN:-} $PATH /usr/lib/postgresql/*/bin /usr/local/pgsql/bin /opt/homebrew/bin; do
    if [ -x "$folder/initdb" ] && [ -x "$folder/postgres" ]; then postgres_found=yes; fi
done
IFS=$old_ifs
[ $postgres_found = yes ] || need postgresql 'PostgreSQL (15 or newer)'

{ have cc || have gcc; } || need gcc 'a C compiler'
# librdkafka's configure asks for one though it compiles none.
{ have c++ || have g++; } || need g++ 'a C++ compiler'
have make || need make make
have pkg-config || need pkg-config pkg-config
# librdkafka is compiled against both.
header() { printf '#include <%s>\n' "$1" | ${CC:-cc} -E - >/dev/null 2>&1; }
header openssl/ssl.h || need libssl-dev "OpenSSL's headers"
header zlib.h || need zlib1g-dev "zlib's headers"
if have cc || have gcc; then header stdio.h || need libc6-dev "the C library's headers"; fi
have kcat || need kcat kcat
# Tests set the clock of a PostgreSQL of their own.
ls /usr/lib/*/faketime/libfaketime.so.1 /usr/lib/faketime/libfaketime.so.1 /usr/local/lib/faketime/libfaketime.so.1 2>/dev/null |
    grep -q . || need libfaketime libfaketime
# The tests read the events topic with the stock Python client, in an environment of its own.
have python3 || need python3 'Python 3'
if ! python3 -c 'import venv, ensurepip' 2>/dev/null; then need python3-venv "Python's venv module"; fi

if [ -n "$packages" ]; then
    if have apt-get && [ -f /etc/debian_version ]; then
        # The newest runtime that this release has; any from 17 on will do.
        java_package=default-jre-headless
        case " $packages " in *' JAVA '*)
            if [ "$(id -u)" = 0 ]; then apt-get update -qq >/dev/null 2>&1; fi
            for candidate in openjdk-21-jre-headless openjdk-17-jre-headless openjdk-25-jre-headless; do
                if apt-cache policy "$candidate" 2>/dev/null | grep -q 'Candidate: [0-9]'; then java_package=$candidate; break; fi
            done ;;
        esac
        packages=$(printf '%s' "$packages" | sed "s/JAVA/$java_package/")
        if [ "$(id -u)" = 0 ]; then
            echo "setup: installing with apt-get: $words" >&2
            # The server programs are wanted, not a server that starts with the machine.
            if [ $postgres_found = no ] && [ ! -e /etc/postgresql-common/createcluster.conf ]; then
                mkdir -p /etc/postgresql-common
                echo 'create_main_cluster = false' >/etc/postgresql-common/createcluster.conf
            fi
            DEBIAN_FRONTEND=noninteractive
            export DEBIAN_FRONTEND
            log=$(mktemp)
            # shellcheck disable=SC2086 # a list of words
            if ! { apt-get update -qq && apt-get install -y -qq --no-install-recommends \
                -o Dpkg::Options::=--force-confold $packages; } >"$log" 2>&1; then
                reason=$(grep '^E:' "$log" | tail -n 1)
                echo "setup: apt-get failed: $reason (whole output: $log); run: apt-get update && apt-get install --no-install-recommends$packages" >&2
                exit 1
            fi
            rm -f "$log"
        else
            echo "setup: missing: $words; run: sudo apt-get install --no-install-recommends$packages" >&2
            exit 1
        fi
    else
        packages=$(printf '%s' "$packages" | sed 's/JAVA/a-java-17-runtime/')
        echo "setup: missing: $words; install with this system's package manager (Debian's names:$packages)" >&2
        exit 1
    fi
fi

[ -d "${CARGO_HOME:-$HOME/.cargo}/bin" ] && PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin
if ! have cargo; then
    echo "setup: missing: Rust (1.92 or newer); install it as https://rustup.rs says, then run this again" >&2
    exit 1
fi
