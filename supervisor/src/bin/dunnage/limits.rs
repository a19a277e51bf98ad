//! Limits of a container's resources, as `run` and `update` take them.

use oci_spec::runtime::{LinuxCpu, LinuxMemory, LinuxPids, LinuxResources};

/// What a container may use.
#[derive(Debug, Clone, Default, PartialEq, clap::Args)]
#[command(next_help_heading = "Limits")]
pub(crate) struct Limits {
    /// Memory, in bytes or with a unit: 512k, 64m, 1.5g; 0 for no limit
    #[arg(short, long, value_name = "SIZE", value_parser = size_or_zero)]
    pub(crate) memory: Option<i64>,
    /// Memory and swap together; 0 for twice the memory, which is usual; -1 for as much swap as there is
    #[arg(long, value_name = "SIZE", value_parser = size_or_none, allow_hyphen_values = true)]
    pub(crate) memory_swap: Option<i64>,
    /// Processors' worth of time: 0.5, 2
    #[arg(long, value_name = "NUMBER", value_parser = cpus)]
    pub(crate) cpus: Option<f64>,
    /// Weight beside other containers where time is short; 1024 is usual
    #[arg(long, value_name = "WEIGHT", value_parser = clap::value_parser!(u64).range(2..=262_144))]
    pub(crate) cpu_shares: Option<u64>,
    /// Processors it may run on: 0-3,5
    #[arg(long, value_name = "LIST")]
    pub(crate) cpuset_cpus: Option<String>,
    /// Processes and threads; 0 or -1 for no limit
    #[arg(long, visible_alias = "pids-limit", value_name = "NUMBER", value_parser = pids, allow_hyphen_values = true)]
    pub(crate) pids: Option<i64>,
}

/// Microseconds in which a share of the processors is counted (`cpu.cfs_period_us`).
const PERIOD: u64 = 100_000;

impl Limits {
    /// None at all.
    pub(crate) fn is_empty(&self) -> bool {
        self.resources(true) == Limits::default().resources(true)
    }

    /// What to tell the user if this kernel does not count swap: that it has no limit, though memory has.
    pub(crate) fn without_swap(&self) -> Option<&'static str> {
        let implied = self.resources(true).memory() != self.resources(false).memory();
        implied.then_some(
            "--memory limits memory only, not swap, which this kernel does not count (`dunnage doctor` has the fix)",
        )
    }

    /// As the runtime-spec has them. Where swap is not counted it has a limit only if that was asked for.
    pub(crate) fn resources(&self, swap_counted: bool) -> LinuxResources {
        let mut resources = LinuxResources::default();
        resources.set_devices(None);
        // Docker's rule: 0 is no word on it.
        let (memory, swap) = (self.memory.filter(|size| *size != 0), self.memory_swap.filter(|size| *size != 0));
        if memory.is_some() || swap.is_some() {
            let (limit, mut memory) = (memory, LinuxMemory::default());
            // And this one: without a word on swap, as much again.
            let swap = swap.or(limit.filter(|_| swap_counted).map(|limit| limit.saturating_mul(2)));
            memory.set_limit(limit).set_swap(swap);
            resources.set_memory(Some(memory));
        }
        if self.cpus.is_some() || self.cpu_shares.is_some() || self.cpuset_cpus.is_some() {
            let mut cpu = LinuxCpu::default();
            if let Some(cpus) = self.cpus {
                cpu.set_period(Some(PERIOD)).set_quota(Some((cpus * PERIOD as f64).round() as i64));
            }
            cpu.set_shares(self.cpu_shares).set_cpus(self.cpuset_cpus.clone());
            resources.set_cpu(Some(cpu));
        }
        if let Some(limit) = self.pids {
            let mut pids = LinuxPids::default();
            pids.set_limit(limit);
            resources.set_pids(Some(pids));
        }
        resources
    }
}

/// Bytes. Units are powers of 1024, as Docker has them.
pub(crate) fn size(text: &str) -> Result<i64, String> {
    let wrong = || format!("{text:?} is no size such as 65536, 512k, 64m or 1.5g");
    let lower = text.to_ascii_lowercase();
    let number = lower.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let shift = match &lower[number.len()..] {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        "p" | "pb" | "pib" => 50,
        _ => return Err(wrong()),
    };
    let number = number.strip_suffix(' ').unwrap_or(number);
    let (whole, part) = number.split_once('.').unwrap_or((number, ""));
    let is_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.len() + part.len() == 0 || !is_digits(whole) || !is_digits(part) {
        return Err(wrong());
    }
    let whole = if whole.is_empty() { Ok(0) } else { whole.parse::<i64>() };
    // Less than one of the unit, of which a double has every bit that counts.
    let part = format!("0.{part}0").parse::<f64>().map_err(|_| wrong())? * (1_i64 << shift) as f64;
    let whole = whole.ok().and_then(|whole| whole.checked_mul(1 << shift));
    whole.and_then(|whole| whole.checked_add(part as i64)).filter(|size| *size > 0).ok_or_else(wrong)
}

fn size_or_zero(text: &str) -> Result<i64, String> {
    if text == "0" { Ok(0) } else { size(text) }
}

fn size_or_none(text: &str) -> Result<i64, String> {
    if text == "-1" { Ok(-1) } else { size_or_zero(text) }
}

fn cpus(text: &str) -> Result<f64, String> {
    // The kernel takes no less than a millisecond in its period.
    let enough = |cpus: &f64| (0.01..=1_000_000.0).contains(cpus);
    text.parse().ok().filter(enough).ok_or_else(|| format!("{text:?} is no number of processors, such as 0.5 or 2"))
}

fn pids(text: &str) -> Result<i64, String> {
    let limit: i64 =
        text.parse().map_err(|_| format!("{text:?} is no number of processes; 0 or -1 is for no limit"))?;
    // What the runtime-spec has for none.
    Ok(if limit > 0 { limit } else { -1 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_docker_reads_them() {
        for (text, bytes) in [
            ("1", 1),
            ("4096b", 4096),
            ("512k", 512 << 10),
            ("64M", 64 << 20),
            ("64 mb", 64 << 20),
            ("2g", 2 << 30),
            ("1GiB", 1 << 30),
            ("1.5g", 3 << 29),
            (".5k", 512),
            ("1.k", 1024),
            ("0.3k", 307),
            ("1.9", 1),
            ("8191p", 8191 << 50),
            ("9223372036854775807", i64::MAX),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in [
            "",
            "0",
            "-1",
            "m",
            ".",
            ".g",
            "1x",
            "1.5.g",
            "1.-5g",
            "+1",
            "1e3",
            "0.1",
            "99999999999g",
            "9223372036854775807k",
        ] {
            assert!(size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn limits_become_what_the_kernel_counts_in() {
        let limits = Limits { memory: Some(64 << 20), cpus: Some(1.5), pids: Some(7), ..Limits::default() };
        let expected = serde_json::json!({
            "memory": {"limit": 64 << 20, "swap": 128 << 20},
            "cpu": {"quota": 150_000, "period": 100_000},
            "pids": {"limit": 7},
        });
        assert_eq!(serde_json::to_value(limits.resources(true)).unwrap(), expected);
        assert_eq!(serde_json::to_value(Limits::default().resources(true)).unwrap(), serde_json::json!({}));
        for text in ["0", "x", "NaN"] {
            assert!(cpus(text).is_err(), "{text}");
        }
    }

    #[test]
    fn swap_that_is_not_counted_is_limited_only_by_who_asks_for_it() {
        let limits = |memory_swap| Limits { memory: Some(7), memory_swap, ..Limits::default() };
        let json = |limits: &Limits| serde_json::to_value(limits.resources(false)).unwrap();
        assert_eq!(json(&limits(None)), serde_json::json!({"memory": {"limit": 7}}));
        assert!(limits(None).without_swap().is_some() && limits(Some(0)).without_swap().is_some());
        assert_eq!(json(&limits(Some(9))), serde_json::json!({"memory": {"limit": 7, "swap": 9}}));
        for other in [limits(Some(9)), limits(Some(-1)), Limits { cpus: Some(1.0), ..Limits::default() }] {
            assert_eq!(other.without_swap(), None, "{other:?}");
        }
    }

    #[test]
    fn what_is_no_limit_for_docker_is_none_here() {
        let json = |memory, memory_swap, pids| {
            let limits = Limits { memory, memory_swap, pids, ..Limits::default() };
            (limits.is_empty(), serde_json::to_value(limits.resources(true)).unwrap())
        };
        let [zero, all] = ["0", "-1"].map(|text| size_or_none(text).ok());
        assert_eq!(json(Some(7), zero, None), (false, serde_json::json!({"memory": {"limit": 7, "swap": 14}})));
        assert_eq!(json(Some(7), all, None), (false, serde_json::json!({"memory": {"limit": 7, "swap": -1}})));
        assert_eq!(json(size_or_zero("0").ok(), zero, None), (true, serde_json::json!({})));
        for text in ["0", "-1"] {
            assert_eq!(json(None, None, pids(text).ok()), (false, serde_json::json!({"pids": {"limit": -1}})));
        }
        assert_eq!(pids("7"), Ok(7));
        assert!(pids("x").is_err() && size_or_zero("-1").is_err());
    }
}
