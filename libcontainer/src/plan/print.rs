//! A plan as text: one line for each entry, the environment by name only.

use std::fmt;

use super::{Entry, Meeting, Plan};
use crate::step::Chore;

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.entries.len().to_string().len();
        for (index, entry) in self.entries.iter().enumerate() {
            writeln!(f, "{:>width$}  {entry}", index + 1)?;
        }
        Ok(())
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Entry::Before(chore) => write!(f, "before  {chore}"),
            Entry::Clone(clone) => write!(f, "clone   {clone}"),
            Entry::Parent(chore) => write!(f, "parent  {chore}"),
            Entry::Child(step) => write!(f, "child   {step}"),
            Entry::Both(meeting) => write!(f, "both    {meeting}"),
        }
    }
}

impl Entry {
    /// What the entry does, without who does it.
    pub(crate) fn what(&self) -> String {
        match self {
            // Of its many properties a failure names the one that matters.
            Entry::Parent(Chore::Unit { unit, .. }) => format!("start unit {unit}"),
            Entry::Before(chore) | Entry::Parent(chore) => chore.to_string(),
            Entry::Clone(clone) => clone.to_string(),
            Entry::Child(step) => step.to_string(),
            Entry::Both(meeting) => meeting.to_string(),
        }
    }
}

impl fmt::Display for Meeting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Meeting::Placed => "meet: systemd has put the process into its unit",
            Meeting::Born => "meet: the copy is there",
            Meeting::Mapped => "meet: ids are mapped",
            Meeting::Mounted => "meet: everything is mounted",
            Meeting::HooksDone => "meet: the runtime's hooks have run",
            Meeting::Start => "meet: created; wait for start",
        })
    }
}
