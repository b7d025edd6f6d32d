//! What one transaction does to instances: locked, told their inputs in memory, written as sets.
//!
//! Everything that concerns an instance, whatever brought it (a record, a deadline, an operator), goes through here
//! under the lock of its row, so it happens one after the other. Knows neither Kafka nor checkpoints.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::Duration;

use tokio_postgres::{GenericClient, Transaction};
use uuid::Uuid;

use super::Managed;
use super::read::{Fault, Told};
use crate::engine::{Action, ProcessManager, Sending, ids};
use crate::panics;
use crate::store::StoreError;

/// An instance as the transaction found it, and as it leaves it.
struct Instance<S> {
    /// Why not, where it cannot be read.
    state: Result<S, String>,
    inputs: i64,
}

/// An input that was handled.
struct InputRow {
    instance: Uuid,
    number: i64,
    cause: Uuid,
    correlation_id: String,
    input: String,
}

/// A command to be sent.
struct CommandRow {
    command_id: Uuid,
    instance: Uuid,
    cause: Uuid,
    sending: Sending,
    value: Vec<u8>,
    correlation_id: String,
}

/// A deadline to be set.
struct DeadlineRow {
    after: Duration,
    set_by: Uuid,
    correlation_id: String,
}

/// The instances of one transaction.
pub(super) struct Ledger<'m, P: ProcessManager> {
    managed: &'m Managed<P>,
    instances: HashMap<Uuid, Instance<P::State>>,
    /// Inputs handled before, by instance and cause.
    known: HashSet<(Uuid, Uuid)>,
    changed: BTreeSet<Uuid>,
    inputs: Vec<InputRow>,
    commands: Vec<CommandRow>,
    /// By instance and name; none is cleared. The last word counts.
    deadlines: BTreeMap<(Uuid, String), Option<DeadlineRow>>,
}

impl<'m, P: ProcessManager> Ledger<'m, P> {
    /// Locks the instances that `told` concerns, made where they begin, and looks what they know already.
    pub async fn open(
        managed: &'m Managed<P>,
        tx: &Transaction<'_>,
        told: &[&Told<P::Event>],
    ) -> Result<Self, StoreError> {
        let begun: BTreeSet<Uuid> = told.iter().filter(|one| one.begins).map(|one| one.instance).collect();
        if !begun.is_empty() {
            let begun: Vec<Uuid> = begun.into_iter().collect();
            let state = json(&P::State::default())?;
            tx.execute(
                "insert into throughline.process_instances (process, instance, state)
                 select $1, instance, $3::text::json from unnest($2::uuid[]) instance on conflict do nothing",
                &[&P::NAME, &begun, &state],
            )
            .await
            .map_err(StoreError::at("begin instances of a process"))?;
        }
        let all: BTreeSet<Uuid> = told.iter().map(|one| one.instance).collect();
        let mut ledger = Self::lock(managed, tx, &all.into_iter().collect::<Vec<_>>()).await?;
        let causes: Vec<(Uuid, Uuid)> = told.iter().map(|one| (one.instance, one.cause)).collect();
        ledger.learn(tx, &causes).await?;
        Ok(ledger)
    }

    /// Looks which of these, by instance and cause, were handled before. After the locks.
    pub async fn learn(&mut self, tx: &Transaction<'_>, causes: &[(Uuid, Uuid)]) -> Result<(), StoreError> {
        let (instances, causes): (Vec<Uuid>, Vec<Uuid>) = causes.iter().copied().unzip();
        let rows = tx
            .query(
                "select i.instance, i.cause from unnest($2::uuid[], $3::uuid[]) t (instance, cause)
                 join throughline.process_inputs i on i.process = $1 and i.instance = t.instance and i.cause = t.cause",
                &[&P::NAME, &instances, &causes],
            )
            .await
            .map_err(StoreError::at("look for inputs handled before"))?;
        self.known = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
        Ok(())
    }

    /// Locks `instances`, in order, so that no two transactions wait for each other.
    pub async fn lock(managed: &'m Managed<P>, tx: &Transaction<'_>, instances: &[Uuid]) -> Result<Self, StoreError> {
        // A statement of its own: what follows sees what the locks' last holders committed.
        let rows = tx
            .query(
                "select instance, state::text, inputs from throughline.process_instances
                 where process = $1 and instance = any($2) order by instance for update",
                &[&P::NAME, &instances],
            )
            .await
            .map_err(StoreError::at("lock instances of a process"))?;
        let read = |row: &tokio_postgres::Row| {
            let state = serde_json::from_str(row.get(1)).map_err(|error| error.to_string());
            (row.get(0), Instance { state, inputs: row.get(2) })
        };
        Ok(Self {
            managed,
            instances: rows.iter().map(read).collect(),
            known: HashSet::new(),
            changed: BTreeSet::new(),
            inputs: Vec::new(),
            commands: Vec::new(),
            deadlines: BTreeMap::new(),
        })
    }

    /// Whether it is of no consequence: handled before, or of an instance that has not begun.
    pub fn passes(&self, told: &Told<P::Event>) -> bool {
        self.known.contains(&(told.instance, told.cause)) || !self.instances.contains_key(&told.instance)
    }

    /// Tells an instance one input. Nothing of it is kept where that fails.
    pub fn handle(&mut self, told: &Told<P::Event>) -> Result<(), Fault> {
        if self.passes(told) {
            return Ok(());
        }
        let Some(instance) = self.instances.get_mut(&told.instance) else { return Ok(()) };
        let mut state = instance.state.clone().map_err(|error| {
            let cure = format!("`throughline process reset {}` makes it anew from its inputs", P::NAME);
            Fault::new("UNREADABLE_STATE", format!("the state of the instance cannot be read ({error}); {cure}"))
        })?;
        let process = &self.managed.process;
        let actions = panics::contain(|| process.handle(told.instance, &mut state, &told.input))
            .map_err(|panic| Fault::new("HANDLER_PANIC", format!("the handler panicked: {panic}")))?;
        let input = serde_json::to_string(&told.input)
            .map_err(|error| Fault::new("UNWRITABLE_INPUT", format!("the input cannot be kept: {error}")))?;
        // Written now, so that a state that cannot be is this input's trouble.
        serde_json::to_string(&state)
            .map_err(|error| Fault::new("UNWRITABLE_STATE", format!("the state cannot be kept: {error}")))?;
        let commands = commands(self.managed, told, &actions)?;
        instance.state = Ok(state);
        instance.inputs += 1;
        self.inputs.push(InputRow {
            instance: told.instance,
            number: instance.inputs,
            cause: told.cause,
            correlation_id: told.correlation_id.clone(),
            input,
        });
        self.commands.extend(commands);
        self.known.insert((told.instance, told.cause));
        self.changed.insert(told.instance);
        for action in actions {
            let (name, row) = match action {
                Action::Send(_) => continue,
                Action::ClearDeadline(name) => (name, None),
                Action::SetDeadline { name, after } => {
                    let correlation_id = told.correlation_id.clone();
                    (name, Some(DeadlineRow { after, set_by: told.cause, correlation_id }))
                }
            };
            self.deadlines.insert((told.instance, name.to_owned()), row);
        }
        Ok(())
    }

    /// A deadline that is being told is set no longer, unless what it is told sets it again.
    pub fn reached(&mut self, instance: Uuid, name: &str) {
        self.deadlines.insert((instance, name.to_owned()), None);
    }

    /// It could not be told, and stays set.
    pub fn not_reached(&mut self, instance: Uuid, name: &str) {
        self.deadlines.remove(&(instance, name.to_owned()));
    }

    /// Whether a deadline was told, set or cleared here.
    pub fn has_changed_deadline(&self, instance: Uuid, name: &str) -> bool {
        self.deadlines.contains_key(&(instance, name.to_owned()))
    }

    /// Commands that [`Ledger::write`] will add.
    pub fn commands(&self) -> usize {
        self.commands.len()
    }

    /// Writes what changed.
    pub async fn write(&self, tx: &Transaction<'_>) -> Result<(), StoreError> {
        self.write_instances(tx).await?;
        self.write_commands(tx).await?;
        self.write_deadlines(tx).await
    }

    async fn write_instances(&self, tx: &Transaction<'_>) -> Result<(), StoreError> {
        if self.changed.is_empty() {
            return Ok(());
        }
        let (mut instances, mut states, mut inputs) = (Vec::new(), Vec::new(), Vec::new());
        for id in &self.changed {
            if let Some(Instance { state: Ok(state), inputs: number }) = self.instances.get(id) {
                instances.push(*id);
                states.push(json(state)?);
                inputs.push(*number);
            }
        }
        tx.execute(
            "update throughline.process_instances i set state = c.state::json, inputs = c.inputs, updated_at = now()
             from unnest($2::uuid[], $3::text[], $4::bigint[]) c (instance, state, inputs)
             where i.process = $1 and i.instance = c.instance",
            &[&P::NAME, &instances, &states, &inputs],
        )
        .await
        .map_err(StoreError::at("write instances of a process"))?;
        let of = |pick: fn(&InputRow) -> Uuid| self.inputs.iter().map(pick).collect::<Vec<_>>();
        let (instances, causes) = (of(|one| one.instance), of(|one| one.cause));
        let numbers: Vec<i64> = self.inputs.iter().map(|one| one.number).collect();
        let correlations: Vec<&str> = self.inputs.iter().map(|one| one.correlation_id.as_str()).collect();
        let inputs: Vec<&str> = self.inputs.iter().map(|one| one.input.as_str()).collect();
        tx.execute(
            "insert into throughline.process_inputs (process, instance, number, cause, correlation_id, input)
             select $1, i.instance, i.number, i.cause, i.correlation_id, i.input::json
             from unnest($2::uuid[], $3::bigint[], $4::uuid[], $5::text[], $6::text[])
                  i (instance, number, cause, correlation_id, input)",
            &[&P::NAME, &instances, &numbers, &causes, &correlations, &inputs],
        )
        .await
        .map_err(StoreError::at("keep inputs of a process"))?;
        Ok(())
    }

    async fn write_commands(&self, tx: &Transaction<'_>) -> Result<(), StoreError> {
        if self.commands.is_empty() {
            return Ok(());
        }
        let of = |pick: fn(&CommandRow) -> Uuid| self.commands.iter().map(pick).collect::<Vec<_>>();
        let (ids, instances, causes) = (of(|one| one.command_id), of(|one| one.instance), of(|one| one.cause));
        let streams = of(|one| one.sending.stream_id);
        let contexts: Vec<&str> = self.commands.iter().map(|one| one.sending.context).collect();
        let names: Vec<&str> = self.commands.iter().map(|one| one.sending.command()).collect();
        let values: Vec<&[u8]> = self.commands.iter().map(|one| one.value.as_slice()).collect();
        let correlations: Vec<&str> = self.commands.iter().map(|one| one.correlation_id.as_str()).collect();
        // In the order in which they were asked for: it is the order in which they are sent.
        tx.execute(
            "insert into throughline.process_commands
                 (process, command_id, instance, cause, context, stream_id, command, value, correlation_id)
             select $1, c.command_id, c.instance, c.cause, c.context, c.stream_id, c.command, c.value, c.correlation_id
             from unnest($2::uuid[], $3::uuid[], $4::uuid[], $5::text[], $6::uuid[], $7::text[], $8::bytea[], $9::text[])
                  with ordinality
                  c (command_id, instance, cause, context, stream_id, command, value, correlation_id, place)
             order by c.place
             on conflict do nothing",
            &[&P::NAME, &ids, &instances, &causes, &contexts, &streams, &names, &values, &correlations],
        )
        .await
        .map_err(StoreError::at("keep commands of a process"))?;
        Ok(())
    }

    async fn write_deadlines(&self, tx: &Transaction<'_>) -> Result<(), StoreError> {
        let (set, cleared): (Vec<_>, Vec<_>) = self.deadlines.iter().partition(|(_, row)| row.is_some());
        if !cleared.is_empty() {
            let (instances, names): (Vec<Uuid>, Vec<&str>) =
                cleared.iter().map(|((instance, name), _)| (*instance, name.as_str())).unzip();
            tx.execute(
                "delete from throughline.process_deadlines d using unnest($2::uuid[], $3::text[]) c (instance, name)
                 where d.process = $1 and d.instance = c.instance and d.name = c.name",
                &[&P::NAME, &instances, &names],
            )
            .await
            .map_err(StoreError::at("clear deadlines"))?;
        }
        if set.is_empty() {
            return Ok(());
        }
        let (instances, names): (Vec<Uuid>, Vec<&str>) =
            set.iter().map(|((instance, name), _)| (*instance, name.as_str())).unzip();
        let rows: Vec<&DeadlineRow> = set.iter().filter_map(|(_, row)| row.as_ref()).collect();
        // What the store has seen pass may be behind by as much as processes look at it: never early.
        let slack = Duration::from_millis(self.managed.settings.process.poll_ms);
        let seconds: Vec<f64> = rows.iter().map(|row| (row.after + slack).as_secs_f64()).collect();
        let causes: Vec<Uuid> = rows.iter().map(|row| row.set_by).collect();
        let correlations: Vec<&str> = rows.iter().map(|row| row.correlation_id.as_str()).collect();
        tx.execute(
            "insert into throughline.process_deadlines (process, instance, name, due, set_by, correlation_id)
             select $1, d.instance, d.name, k.elapsed + make_interval(secs => d.seconds), d.set_by, d.correlation_id
             from throughline.clock k,
                  unnest($2::uuid[], $3::text[], $4::float8[], $5::uuid[], $6::text[])
                      d (instance, name, seconds, set_by, correlation_id)
             on conflict (process, instance, name) do update
             set due = excluded.due, set_by = excluded.set_by, correlation_id = excluded.correlation_id, failed = null",
            &[&P::NAME, &instances, &names, &seconds, &causes, &correlations],
        )
        .await
        .map_err(StoreError::at("set deadlines"))?;
        Ok(())
    }
}

/// The commands among `actions`, under the ids that follow from their cause.
fn commands<P: ProcessManager>(
    managed: &Managed<P>,
    told: &Told<P::Event>,
    actions: &[Action],
) -> Result<Vec<CommandRow>, Fault> {
    let sendings = actions.iter().filter_map(|action| match action {
        Action::Send(sending) => Some(sending),
        _ => None,
    });
    let bytes_max = managed.settings.topics.command_record_bytes_max as usize;
    let mut rows = Vec::new();
    for (ordinal, sending) in (0u32..).zip(sendings) {
        let command_id = ids::process_command_id(P::NAME, told.instance, told.cause, ordinal);
        let value = sending.value(command_id);
        let checked = match value.len() {
            bytes if bytes > bytes_max => Err(format!("it has {bytes} bytes, its topic takes {bytes_max}")),
            _ => (sending.check)(&value),
        };
        checked.map_err(|reason| {
            let command = sending.command();
            Fault::new(
                "INVALID_COMMAND",
                format!("{} would not take the {command} that it sends: {reason}", sending.context),
            )
        })?;
        let (instance, cause, correlation_id) = (told.instance, told.cause, told.correlation_id.clone());
        rows.push(CommandRow { command_id, instance, cause, sending: sending.clone(), value, correlation_id });
    }
    Ok(rows)
}

/// JSON of the author's own types.
pub(super) fn json(value: &impl serde::Serialize) -> Result<String, StoreError> {
    serde_json::to_string(value)
        .map_err(|error| StoreError::Schema(format!("a state cannot be written as JSON: {error}")))
}

/// The commands of `ids` that the process sent: instance, context and type, by id.
pub(super) async fn sent(
    client: &impl GenericClient,
    process: &str,
    ids: &[Uuid],
) -> Result<HashMap<Uuid, (Uuid, String, String)>, StoreError> {
    if ids.is_empty() {
        return Ok(HashMap::new());
    }
    let rows = client
        .query(
            "select command_id, instance, context, command from throughline.process_commands
             where process = $1 and command_id = any($2)",
            &[&process, &ids],
        )
        .await
        .map_err(StoreError::at("look for commands that the process sent"))?;
    Ok(rows.iter().map(|row| (row.get(0), (row.get(1), row.get(2), row.get(3)))).collect())
}
