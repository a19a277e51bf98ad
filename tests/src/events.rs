//! The events of a containerd, and the grammar they obey.
//!
//! For each container: create, start, exec-added, exec-started, oom, exit, delete, in this order; exactly one exit; an
//! exec's exit before its container's; nothing twice and nothing after delete, unless the container is made again.

use std::collections::BTreeMap;

use serde_json::Value;

/// One line of `ctr events`.
#[derive(Clone, Debug)]
pub struct Event {
    /// The containerd namespace it was published in.
    pub namespace: String,
    /// As `/tasks/exit`.
    pub topic: String,
    /// The message, as JSON with protobuf's field names.
    pub message: Value,
}

impl Event {
    /// Reads all whole lines of `ctr events`.
    pub fn parse_all(text: &str) -> Vec<Self> {
        text.split_inclusive('\n').filter(|line| line.ends_with('\n')).filter_map(Self::parse).collect()
    }

    /// `2026-01-31 10:20:30.123 +0000 UTC web /tasks/exit {"container_id":"a"}`
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.splitn(7, ' ').skip(4);
        let (namespace, topic, json) = (words.next()?, words.next()?, words.next()?);
        let message = serde_json::from_str(json).ok()?;
        Some(Self { namespace: namespace.to_owned(), topic: topic.to_owned(), message })
    }

    /// A text field of the message; empty where it is not set.
    pub fn text(&self, field: &str) -> &str {
        self.message[field].as_str().unwrap_or_default()
    }

    /// A number of the message; 0 where it is not set.
    pub fn number(&self, field: &str) -> u64 {
        self.message[field].as_u64().unwrap_or_default()
    }

    /// Whether this says that the process `id` of `container` has ended. The first process has its container's id.
    pub fn is_exit_of(&self, container: &str, id: &str) -> bool {
        self.topic == "/tasks/exit" && self.text("container_id") == container && self.text("id") == id
    }
}

/// How a container or an exec goes.
#[derive(Default)]
struct Life {
    started: bool,
    exited: bool,
    execs: BTreeMap<String, Exec>,
}

#[derive(Default)]
struct Exec {
    started: bool,
    exited: bool,
}

/// Checks the events of tasks in `namespace` against the grammar; the texts say what was wrong, and where.
pub fn check(namespace: &str, events: &[Event]) -> Vec<String> {
    let mut lives: BTreeMap<String, Life> = BTreeMap::new();
    let mut faults = Vec::new();
    for (index, event) in events.iter().enumerate() {
        if event.namespace != namespace || !event.topic.starts_with("/tasks/") {
            continue;
        }
        if let Err(fault) = step(&mut lives, event) {
            faults.push(format!("event {index}, {} {}: {fault}", event.topic, event.message));
        }
    }
    faults.extend(lives.keys().map(|id| format!("container {id}: no delete at the end")));
    faults
}

fn step(lives: &mut BTreeMap<String, Life>, event: &Event) -> Result<(), &'static str> {
    let id = event.text("container_id");
    if event.topic == "/tasks/create" {
        let fresh = lives.insert(id.to_owned(), Life::default()).is_none();
        return fresh.then_some(()).ok_or("created twice");
    }
    let life = lives.get_mut(id).ok_or("of a container that is not there")?;
    let demand = |holds: bool, fault| if holds { Ok(()) } else { Err(fault) };
    match event.topic.as_str() {
        "/tasks/start" => {
            demand(!life.started, "started twice")?;
            demand(!life.exited, "started after its exit")?;
            life.started = true;
        }
        "/tasks/exec-added" => {
            demand(!life.exited, "exec after the container's exit")?;
            let earlier = life.execs.insert(event.text("exec_id").to_owned(), Exec::default());
            demand(earlier.is_none_or(|exec| exec.exited || !exec.started), "exec added while it runs")?;
        }
        "/tasks/exec-started" => {
            demand(!life.exited, "exec started after the container's exit")?;
            let exec = life.execs.get_mut(event.text("exec_id")).ok_or("exec started but not added")?;
            demand(!exec.started, "exec started twice")?;
            exec.started = true;
        }
        "/tasks/exit" if event.text("id") == id => {
            demand(!life.exited, "exited twice")?;
            let open = life.execs.values().any(|exec| exec.started && !exec.exited);
            demand(!open, "exit before that of an exec")?;
            life.exited = true;
        }
        "/tasks/exit" => {
            demand(!life.exited, "exec's exit after the container's")?;
            let exec = life.execs.get_mut(event.text("id")).ok_or("exit of an exec that was not added")?;
            demand(exec.started, "exit of an exec that was not started")?;
            demand(!exec.exited, "exec exited twice")?;
            exec.exited = true;
        }
        "/tasks/oom" | "/tasks/paused" | "/tasks/resumed" => demand(!life.exited, "after the exit")?,
        "/tasks/delete" if event.text("id").is_empty() || event.text("id") == id => {
            demand(life.exited || !life.started, "deleted before its exit")?;
            lives.remove(id);
        }
        "/tasks/delete" => {}
        _ => return Err("a topic nobody knows"),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{Event, check};

    /// Events of the container `c`, as `create` or `exit e` (`e` being an exec).
    fn faults(story: &[&str]) -> Vec<String> {
        let event = |line: &&str| {
            let (topic, exec) = line.split_once(' ').unwrap_or((line, ""));
            let id = if exec.is_empty() && topic == "exit" { "c" } else { exec };
            let json = format!(r#"{{"container_id":"c","exec_id":"{exec}","id":"{id}"}}"#);
            Event::parse(&format!("d t z UTC n /tasks/{topic} {json}")).expect("an event")
        };
        check("n", &story.iter().map(event).collect::<Vec<_>>())
    }

    #[test]
    fn a_whole_life_is_in_order_and_may_be_lived_again() {
        let life = [
            "create",
            "start",
            "exec-added e",
            "exec-started e",
            "paused",
            "resumed",
            "exit e",
            "oom",
            "exit",
            "delete",
        ];
        assert!(faults(&life).is_empty());
        assert!(faults(&[life, life].concat()).is_empty());
    }

    #[test]
    fn a_container_that_was_never_started_may_be_deleted() {
        assert!(faults(&["create", "delete"]).is_empty());
        assert!(faults(&["create", "exit", "delete"]).is_empty());
    }

    #[test]
    fn what_is_lost_repeated_or_late_is_found() {
        for (story, part) in [
            (&["create", "start", "delete"][..], "before its exit"),
            (&["create", "start", "exit", "exit", "delete"], "exited twice"),
            (&["create", "exit", "start", "delete"], "started after"),
            (&["start", "exit", "delete"], "not there"),
            (&["create", "start", "exit"], "no delete"),
            (&["create", "start", "exec-added e", "exec-started e", "exit", "exit e", "delete"], "that of an exec"),
            (&["create", "start", "exit", "oom", "delete"], "after the exit"),
            (&["create", "start", "start", "exit", "delete"], "started twice"),
            (&["create", "create", "exit", "delete"], "created twice"),
        ] {
            let found = faults(story);
            assert!(found.iter().any(|fault| fault.contains(part)), "{story:?}: {found:?}");
        }
    }

    #[test]
    fn half_a_line_is_left_for_later() {
        assert!(Event::parse_all("d t z UTC n /tasks/exit {}\nd t z UTC n /tasks/ex").len() == 1);
    }
}
