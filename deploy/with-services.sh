#!/bin/sh
# with-services.sh BINARY DIRECTORY COMMAND...: runs COMMAND with the addresses of a fresh Kafka and a fresh
# PostgreSQL of its own, takes both down whatever happens, and ends with COMMAND's exit code.
set -u
binary=$1
directory=$2
shift 2

services() {
    # Never those that a shell has configured, and local ones: tests stop and kill them singly.
    env -u KAFKA_BROKERS -u DATABASE_URL THROUGHLINE__DEV__RUNNER=local THROUGHLINE__DEV__DIRECTORY="$directory" \
        "$binary" dev "$@"
}
finish() {
    code=$?
    trap - EXIT INT TERM HUP
    services reset --yes 2>/dev/null
    exit "$code"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

services reset --yes 2>/dev/null
services up --detach >/dev/null || exit 1
addresses=$(services env) || exit 1
eval "$addresses"
# HTTP is each test's own matter.
export KAFKA_BROKERS DATABASE_URL KAFKA_CLASSPATH KAFKA_BIN
"$@"
