//! A container's numbers as containerd's metrics messages.

use libcontainer::cgroup::stats::{Rdma, RdmaEntry, Stats, v1, v2};
use protobuf::MessageField;
use runtime_v2_api::{Any, cgroups_v1 as wire1, cgroups_v2 as wire2, pack};

/// The message for these numbers: which of the two, the cgroup version decides.
///
/// # Errors
/// When it is too large to encode, which no kernel makes it.
pub(crate) fn message(stats: Stats) -> protobuf::Result<Any> {
    match stats {
        Stats::V1(metrics) => pack(&message_v1(*metrics)),
        Stats::V2(metrics) => pack(&message_v2(*metrics)),
    }
}

/// A message with the same fields, of the same names, as a struct of ours.
macro_rules! same {
    ($from:expr => $message:ty { $($field:ident),* $(,)? }) => {{
        let from = $from;
        <$message>::from_fields(|message| { $(message.$field = from.$field;)* })
    }};
}

/// A message whose fields are set one by one; the rest keeps its defaults.
trait FromFields: Default {
    fn from_fields(set: impl FnOnce(&mut Self)) -> Self {
        let mut message = Self::default();
        set(&mut message);
        message
    }
}

impl<M: protobuf::Message> FromFields for M {}

fn some<F, M>(from: Option<F>, to: impl FnOnce(F) -> M) -> MessageField<M> {
    MessageField::from_option(from.map(to))
}

fn all<F, M>(from: Vec<F>, to: impl FnMut(F) -> M) -> Vec<M> {
    from.into_iter().map(to).collect()
}

fn message_v1(metrics: v1::Metrics) -> wire1::Metrics {
    let entry =
        |from: v1::MemoryEntry| MessageField::some(same!(from => wire1::MemoryEntry { limit, usage, max, failcnt }));
    let blkio = |from| all(from, |e: v1::BlkioEntry| same!(e => wire1::BlkIOEntry { op, device, major, minor, value }));
    let rdma = |e: RdmaEntry| same!(e => wire1::RdmaEntry { device, hca_handles, hca_objects });
    wire1::Metrics {
        hugetlb: all(metrics.hugetlb, |h| same!(h => wire1::HugetlbStat { usage, max, failcnt, pagesize })),
        pids: some(metrics.pids, |pids| same!(pids => wire1::PidsStat { current, limit })),
        cpu: some(metrics.cpu, |v1::Cpu { usage, throttling }| wire1::CPUStat {
            usage: MessageField::some(same!(usage => wire1::CPUUsage { total, kernel, user, per_cpu })),
            throttling: MessageField::some(
                same!(throttling => wire1::Throttle { periods, throttled_periods, throttled_time }),
            ),
            ..Default::default()
        }),
        memory: some(metrics.memory, |memory| {
            let mut message = same!(memory.stat => wire1::MemoryStat {
                cache, rss, rss_huge, mapped_file, dirty, writeback, pg_pg_in, pg_pg_out, pg_fault, pg_maj_fault,
                inactive_anon, active_anon, inactive_file, active_file, unevictable, hierarchical_memory_limit,
                hierarchical_swap_limit, total_cache, total_rss, total_rss_huge, total_mapped_file, total_dirty,
                total_writeback, total_pg_pg_in, total_pg_pg_out, total_pg_fault, total_pg_maj_fault,
                total_inactive_anon, total_active_anon, total_inactive_file, total_active_file, total_unevictable,
            });
            message.usage = entry(memory.usage);
            message.swap = entry(memory.swap);
            message.kernel = entry(memory.kernel);
            message.kernel_tcp = entry(memory.kernel_tcp);
            message
        }),
        blkio: some(metrics.blkio, |from| wire1::BlkIOStat {
            io_service_bytes_recursive: blkio(from.io_service_bytes_recursive),
            io_serviced_recursive: blkio(from.io_serviced_recursive),
            io_queued_recursive: blkio(from.io_queued_recursive),
            io_service_time_recursive: blkio(from.io_service_time_recursive),
            io_wait_time_recursive: blkio(from.io_wait_time_recursive),
            io_merged_recursive: blkio(from.io_merged_recursive),
            io_time_recursive: blkio(from.io_time_recursive),
            sectors_recursive: blkio(from.sectors_recursive),
            ..Default::default()
        }),
        rdma: some(metrics.rdma, |Rdma { current, limit }| wire1::RdmaStat {
            current: all(current, rdma),
            limit: all(limit, rdma),
            ..Default::default()
        }),
        memory_oom_control: some(
            metrics.memory_oom_control,
            |from| same!(from => wire1::MemoryOomControl { oom_kill_disable, under_oom, oom_kill }),
        ),
        ..Default::default()
    }
}

fn message_v2(metrics: v2::Metrics) -> wire2::Metrics {
    let pressure =
        |from: v2::PsiData| MessageField::some(same!(from => wire2::PSIData { avg10, avg60, avg300, total }));
    let psi = |from| {
        some(from, |from: v2::Psi| wire2::PSIStats {
            some: pressure(from.some),
            full: pressure(from.full),
            ..Default::default()
        })
    };
    let rdma = |e: RdmaEntry| same!(e => wire2::RdmaEntry { device, hca_handles, hca_objects });
    let mut cpu = same!(metrics.cpu.stat => wire2::CPUStat {
        usage_usec, user_usec, system_usec, nr_periods, nr_throttled, throttled_usec, nr_bursts, burst_usec,
    });
    cpu.psi = psi(metrics.cpu.psi);
    let from = metrics.memory;
    let mut memory = same!(from.stat => wire2::MemoryStat {
        anon, file, kernel_stack, slab, sock, shmem, file_mapped, file_dirty, file_writeback, anon_thp, inactive_anon,
        active_anon, inactive_file, active_file, unevictable, slab_reclaimable, slab_unreclaimable, pgfault, pgmajfault,
        workingset_refault, workingset_activate, workingset_nodereclaim, pgrefill, pgscan, pgsteal, pgactivate,
        pgdeactivate, pglazyfree, pglazyfreed, thp_fault_alloc, thp_collapse_alloc,
    });
    memory.usage = from.usage;
    memory.usage_limit = from.usage_limit;
    memory.swap_usage = from.swap_usage;
    memory.swap_limit = from.swap_limit;
    memory.max_usage = from.max_usage;
    memory.swap_max_usage = from.swap_max_usage;
    memory.psi = psi(from.psi);
    wire2::Metrics {
        pids: MessageField::some(same!(metrics.pids => wire2::PidsStat { current, limit })),
        cpu: MessageField::some(cpu),
        memory: MessageField::some(memory),
        rdma: MessageField::some(wire2::RdmaStat {
            current: all(metrics.rdma.current, rdma),
            limit: all(metrics.rdma.limit, rdma),
            ..Default::default()
        }),
        io: MessageField::some(wire2::IOStat {
            usage: all(metrics.io.usage, |e| same!(e => wire2::IOEntry { major, minor, rbytes, wbytes, rios, wios })),
            psi: psi(metrics.io.psi),
            ..Default::default()
        }),
        hugetlb: all(metrics.hugetlb, |h| same!(h => wire2::HugeTlbStat { current, max, pagesize, failcnt })),
        memory_events: some(
            metrics.memory_events,
            |from| same!(from => wire2::MemoryEvents { low, high, max, oom, oom_kill, oom_group_kill }),
        ),
        ..Default::default()
    }
}
