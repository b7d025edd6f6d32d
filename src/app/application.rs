//! The application: its name, and the contexts that it hosts. All the rest follows from these.

use std::collections::HashMap;
use std::process::ExitCode;
use std::sync::Arc;

use super::context::{Context, Hosted};
use crate::engine::{BoundedContext, ProcessManager, ReadModel};
use crate::process::{AnyProcess, Process};

/// An application of bounded contexts: what `main` builds, and everything else is given.
///
/// ```no_run
/// fn main() -> std::process::ExitCode {
///     throughline::App::new("acme").main()
/// }
/// ```
#[derive(Clone)]
pub struct App {
    name: &'static str,
    contexts: Vec<Arc<dyn Hosted>>,
    processes: Vec<Arc<dyn AnyProcess>>,
}

/// Two contexts cannot live in one application, or one asked for is not there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct AppError(String);

impl App {
    /// An application without a context. `name` is a company's or a product's: the title of its documents.
    pub fn new(name: &'static str) -> Self {
        Self { name, contexts: Vec::new(), processes: Vec::new() }
    }

    /// Hosts `context`.
    #[must_use]
    pub fn context<C: BoundedContext>(mut self, context: Context<C>) -> Self {
        self.contexts.push(Arc::new(context));
        self
    }

    /// Runs `process` between its contexts.
    #[must_use]
    pub fn process<P: ProcessManager>(mut self, process: Process<P>) -> Self {
        self.processes.push(Arc::new(process));
        self
    }

    /// Runs the command line of the application and returns its exit code: every role, and every command.
    pub fn main(self) -> ExitCode {
        crate::cli::main(self)
    }

    /// Its name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Its contexts, as they were registered.
    pub fn contexts(&self) -> &[Arc<dyn Hosted>] {
        &self.contexts
    }

    /// Sections of settings that are its own: one for each context and process manager, by its name.
    pub fn sections(&self) -> Vec<String> {
        let contexts = self.contexts.iter().map(|context| context.name());
        let processes = self.processes.iter().map(|process| process.name());
        contexts.chain(processes).map(|name| name.replace('-', "_")).collect()
    }

    /// Its process managers, as they were registered.
    pub fn processes(&self) -> &[Arc<dyn AnyProcess>] {
        &self.processes
    }

    /// The context of that name; without a name, the first that was registered, so that what people type stays
    /// right when another context comes.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn find(&self, name: Option<&str>) -> Result<&Arc<dyn Hosted>, AppError> {
        let names = || self.contexts.iter().map(|one| one.name()).collect::<Vec<_>>().join(", ");
        match (name, self.contexts.as_slice()) {
            (None, [first, ..]) => Ok(first),
            (None, []) => Err(AppError("this program has no context".into())),
            (Some(name), contexts) => contexts
                .iter()
                .find(|one| one.name() == name)
                .ok_or_else(|| AppError(format!("no context is named `{name}`: choose one of {}", names()))),
        }
    }

    /// The read models of all contexts.
    pub fn read_models(&self) -> Vec<ReadModel> {
        self.contexts.iter().flat_map(|context| context.read_models()).collect()
    }

    /// Holds the contexts against each other: what two would share, they would overwrite.
    ///
    /// # Errors
    /// The first name that is taken twice, and by whom.
    pub fn check(&self) -> Result<(), AppError> {
        let mut taken: HashMap<String, String> = HashMap::new();
        let mut take = |what: String, by: String| match taken.insert(what.clone(), by.clone()) {
            Some(other) => Err(AppError(format!("{by} and {other} both have {what}; rename one of them"))),
            None => Ok(()),
        };
        for context in &self.contexts {
            let owner = format!("context {}", context.name());
            check_name(context.name())?;
            take(format!("the name {}", context.name()), owner.clone())?;
            take(format!("the name space {}", context.namespace()), owner.clone())?;
            // It tells the contexts apart where a command's state is asked for.
            take(format!("the name {} for the ids of streams", context.stream_id_field()), owner.clone())?;
            for model in context.read_models() {
                let by = format!("projection {} of {owner}", model.name);
                take(format!("the role projection:{}", model.name), by.clone())?;
                for relation in model.tables.iter().chain(model.views) {
                    take(format!("the relation read.{relation}"), by.clone())?;
                }
            }
        }
        for process in &self.processes {
            let by = format!("process {}", process.name());
            check_name(process.name())?;
            take(format!("the role process:{}", process.name()), by.clone())?;
            for context in process.contexts() {
                if !self.contexts.iter().any(|hosted| hosted.name() == context) {
                    return Err(AppError(format!("{by} reads {context}, which is not hosted: register that context")));
                }
            }
        }
        Ok(())
    }
}

/// The name of a context or a process is part of topics, groups and settings.
///
/// # Errors
/// It is no such name, and what one is.
pub fn check_name(name: &str) -> Result<(), AppError> {
    let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if name.is_empty() || name.len() > 48 || !name.bytes().all(is_plain) || !name.as_bytes()[0].is_ascii_lowercase() {
        let rule = "such a name begins with a letter and is 1 to 48 lower-case letters, digits and hyphens";
        return Err(AppError(format!("`{name}`: {rule}")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use garde::Validate;
    use schemars::JsonSchema;
    use serde::{Deserialize, Serialize};

    use super::*;
    use crate::avro::{Schemas, Upcasters};
    use crate::engine::{Aggregate, Decision};
    use crate::plain::{Plain, PlainContext, StateTable};

    #[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, Validate, JsonSchema)]
    struct Nothing {}

    impl Aggregate for Nothing {
        type Command = Self;
        type Event = Self;

        const SNAPSHOT_VERSION: i16 = 1;

        fn decide(&self, _: &Self) -> Decision<Self> {
            Ok(Vec::new())
        }

        fn evolve(&mut self, _: &Self) {}
    }

    macro_rules! contexts {
        ($($context:ident: $name:literal, $namespace:literal;)*) => {$(
            struct $context;

            impl PlainContext for $context {
                type Aggregate = Nothing;

                const NAME: &'static str = $name;
                const NAMESPACE: &'static str = $namespace;
                const STREAM_ID_FIELD: &'static str = concat!($name, "Id");
                const SCHEMAS: Schemas = Schemas { published: &[], upcasters: || Upcasters::new(&[]), lock: "" };
            }
        )*};
    }

    contexts! {
        Bank: "bank", "acme.bank";
        Namesake: "bank", "acme.other";
        Neighbour: "shop", "acme.bank";
        Shop: "shop", "acme.shop";
        Loud: "Shop", "acme.loud";
    }

    fn of<P: PlainContext>(table: &'static str) -> Context<Plain<P>> {
        Context::new(P::SCHEMAS, Plain::codec).projection(StateTable::<P>::new(table, 1))
    }

    fn reason(app: &App) -> String {
        app.check().expect_err("they collide").to_string()
    }

    #[test]
    fn contexts_that_share_nothing_live_together_and_the_first_is_meant() {
        let app = App::new("Acme").context(of::<Bank>("accounts")).context(of::<Shop>("carts"));
        assert_eq!(app.check(), Ok(()));
        assert_eq!(app.find(None).unwrap().name(), "bank");
        assert_eq!(app.find(Some("shop")).unwrap().namespace(), "acme.shop");
        let missing = app.find(Some("stock")).err().expect("there is none").to_string();
        assert!(missing.contains("choose one of bank, shop"), "{missing}");
        assert!(App::new("Acme").find(None).is_err());
    }

    #[test]
    fn what_two_would_overwrite_is_told_with_both_their_names() {
        let beside = |other: App| reason(&other.context(of::<Bank>("accounts")));
        let said = beside(App::new("Acme").context(of::<Namesake>("other")));
        assert!(said.contains("the name bank"), "{said}");
        let said = beside(App::new("Acme").context(of::<Neighbour>("other")));
        assert!(said.contains("context bank and context shop both have the name space acme.bank"), "{said}");
        let said = beside(App::new("Acme").context(of::<Shop>("accounts")));
        assert!(said.contains("projection accounts of context bank") && said.contains("of context shop"), "{said}");
        let said = reason(&App::new("Acme").context(of::<Loud>("carts")));
        assert!(said.contains("lower-case letters"), "{said}");
    }
}
