//! The machine below the containers, as /proc tells it.

use std::fs;

use anyhow::Context;

/// One reading.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Machine {
    pub(super) cpus: u64,
    /// Ticks since the start of the machine, of all processors.
    busy: u64,
    total: u64,
    /// Bytes.
    pub(super) memory: u64,
    pub(super) memory_used: u64,
    /// Means of one, five and fifteen minutes, as the kernel writes them.
    pub(super) load: String,
}

impl Machine {
    /// Reads /proc.
    ///
    /// # Errors
    /// When there is no /proc, or it says something else than Linux's.
    pub(super) fn read() -> anyhow::Result<Machine> {
        let file = |path: &str| fs::read_to_string(path).with_context(|| format!("read {path}"));
        let (stat, memory, load) = (file("/proc/stat")?, file("/proc/meminfo")?, file("/proc/loadavg")?);
        Machine::parse(&stat, &memory, &load).context("understand /proc/stat and /proc/meminfo")
    }

    fn parse(stat: &str, memory: &str, load: &str) -> Option<Machine> {
        let ticks = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
        let ticks: Vec<u64> = ticks.split_whitespace().map_while(|tick| tick.parse().ok()).collect();
        // user nice system idle iowait irq softirq steal; guests' time is part of user's already (proc_stat(5)).
        let total = ticks.iter().take(8).sum();
        let idle: u64 = ticks.iter().skip(3).take(2).sum();
        let kilobytes = |name: &str| {
            let line = memory.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            line.split_whitespace().next()?.parse::<u64>().ok()
        };
        let (all, free) = (kilobytes("MemTotal")? * 1024, kilobytes("MemAvailable")? * 1024);
        let cpus = stat.lines().filter(|line| line.starts_with("cpu") && !line.starts_with("cpu ")).count();
        Some(Machine {
            cpus: cpus as u64,
            busy: total - idle.min(total),
            total,
            memory: all,
            memory_used: all.saturating_sub(free),
            load: load.split_whitespace().take(3).collect::<Vec<_>>().join(" "),
        })
    }

    /// The part of all processors' time that was spent since `before`.
    pub(super) fn cpu_since(&self, before: &Machine) -> Option<f64> {
        let total = self.total.checked_sub(before.total).filter(|ticks| *ticks > 0)?;
        #[expect(clippy::cast_precision_loss, reason = "a share, of which few figures are shown")]
        let share = self.busy.checked_sub(before.busy)? as f64 / total as f64;
        Some(share)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A machine with two processors after so many ticks.
    pub(in super::super) fn machine(busy: u64, idle: u64) -> Machine {
        let stat = format!("cpu  {busy} 0 0 {idle} 0 0 0 0 0 0\ncpu0 1 2 3\ncpu1 4 5 6\nintr 1 2\n");
        let memory = "MemTotal:       16777216 kB\nMemFree:  1 kB\nMemAvailable:   12582912 kB\n";
        Machine::parse(&stat, memory, "0.52 0.40 0.30 2/345 6789\n").unwrap()
    }

    #[test]
    fn what_is_not_idle_is_busy() {
        let (before, after) = (machine(100, 100), machine(150, 250));
        assert_eq!(after.cpu_since(&before), Some(0.25));
        assert_eq!(before.cpu_since(&before), None);
        assert_eq!((after.cpus, after.memory_used >> 30, after.load.as_str()), (2, 4, "0.52 0.40 0.30"));
    }

    #[test]
    fn this_machine_is_understood() {
        let here = Machine::read().unwrap();
        assert!(here.cpus > 0 && here.memory > here.memory_used && here.total > 0, "{here:?}");
    }
}
