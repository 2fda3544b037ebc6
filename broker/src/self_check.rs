//! **What**: the start-up self-check: what this machine must allow before a core is started, and what it had better.
//!
//! Facts are gathered first (`gather`), then judged by a pure function (`judge`), so that every verdict has a test.
//!
//! **Invariants**: a finding says what was found, what is needed and what to do about it, in lines that can be copied. It
//! runs before the first executor: glommio 0.9 ends the process without a word of help if an operation is missing.
//!
//! **Never**: a change to the machine; to this process only its own soft limits.
//!
//! **See**: `io/sys.rs` for the system calls, `boot.rs` for when it runs.

use crate::io::disk::{FolderProblem, FolderStep, is_in_memory, try_folder};
use crate::io::sys::{self, Limit, Resource};
use felix_wal::disk::DiskError;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Oldest kernel: glommio 0.9 names 5.8 as its minimum (the io_uring operations it insists on came with 5.6, polling of
/// sockets without a helper thread with 5.7, the fixes that it relies on with 5.8). UDP GRO came with 5.0.
pub const KERNEL_MIN: (u32, u32) = (5, 8);

/// Locked memory that glommio insists on, per process, and that we ask for per core: three rings, and buffers that are
/// registered with each.
pub const LOCKED_BYTES_PER_CORE: u64 = 512 << 10;

/// Open files per core: three rings, event descriptors, sockets and their duplicates.
pub const FILES_PER_CORE: u64 = 32;

/// Open files besides the cores and the data: control thread, HTTP, logs, certificates.
pub const FILES_BASE: u64 = 256;

/// Open files that are asked for: as many as Linux lets a process have unless told otherwise (`fs.nr_open`).
pub const FILES_WANTED: u64 = 1 << 20;

/// Files that a core may have open at once when it has many durable shards: 256 segments that are written, 32 that are read, the
/// write-ahead log's, and what jobs open for a moment.
pub const FILES_OF_MANY_SHARDS: u64 = 400;

/// What the configuration asks of the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Number of cores.
    pub cores: usize,
    /// CPUs to pin them to, if chosen by name.
    pub cpus: Option<Vec<usize>>,
    /// Kernel receive buffer of each socket, in bytes.
    pub receive_bytes: u64,
    /// Kernel send buffer of each socket, in bytes.
    pub send_bytes: u64,
    /// Open files for data: segments and indexes, at least.
    pub data_files: u64,
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Kernel release, such as `6.8.0-41-generic`.
    pub kernel: String,
    /// Error number of an io_uring setup, if it failed.
    pub io_uring: Result<(), i32>,
    /// `kernel.io_uring_disabled`, if the kernel has it.
    pub io_uring_disabled: Option<u64>,
    /// Locked memory, after raising the soft limit.
    pub locked_memory: Limit,
    /// Open files, after raising the soft limit.
    pub open_files: Limit,
    /// CPUs this process may use: affinity and cgroup CPU set.
    pub cpus: Vec<usize>,
    /// CPUs' worth of time that the cgroup grants, if it is limited, in thousandths.
    pub cpu_quota_milli: Option<u64>,
    /// `net.core.rmem_max`, if visible.
    pub receive_bytes_max: Option<u64>,
    /// `net.core.wmem_max`, if visible.
    pub send_bytes_max: Option<u64>,
    /// Whether the process may exceed the two maxima (CAP_NET_ADMIN).
    pub may_force_buffers: bool,
}

/// Something that is wrong, or could be better.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// The kernel is too old, or its release cannot be read.
    Kernel {
        /// The release.
        found: String,
    },
    /// io_uring is switched off or forbidden.
    IoUringForbidden {
        /// The error number.
        errno: i32,
        /// `kernel.io_uring_disabled`.
        disabled: Option<u64>,
    },
    /// The kernel has no io_uring.
    IoUringMissing {
        /// The error number.
        errno: i32,
    },
    /// The limit of locked memory is below what one executor needs.
    LockedMemory {
        /// The limit.
        found: u64,
        /// What is needed.
        needed: u64,
    },
    /// The limit of locked memory may not be enough for all cores.
    LockedMemoryTight {
        /// The limit.
        found: u64,
        /// What is needed.
        needed: u64,
    },
    /// More cores are asked for than CPUs are allowed.
    TooManyCores {
        /// CPUs allowed.
        allowed: Vec<usize>,
        /// Cores asked for.
        cores: usize,
    },
    /// A CPU is asked for by name that is not allowed.
    CpuNotAllowed {
        /// CPUs allowed.
        allowed: Vec<usize>,
        /// The CPU.
        cpu: usize,
    },
    /// The cgroup grants less CPU time than the cores can use.
    CpuQuota {
        /// Thousandths of a CPU granted.
        found_milli: u64,
        /// Cores asked for.
        cores: usize,
    },
    /// The kernel caps a socket buffer below what is asked for.
    SocketBuffer {
        /// The sysctl.
        sysctl: &'static str,
        /// Its value.
        found: u64,
        /// What is asked for.
        needed: u64,
    },
    /// The data folder does not take what the cores do to it.
    DataFolder {
        /// The folder.
        folder: PathBuf,
        /// What was tried and what the system said.
        problem: FolderProblem,
    },
    /// The data folder is gone when the machine is switched off.
    DataFolderInMemory {
        /// The folder.
        folder: PathBuf,
    },
    /// Too few open files.
    OpenFiles {
        /// The limit.
        found: u64,
        /// What is needed.
        needed: u64,
    },
    /// Open files for not very many shards.
    OpenFilesTight {
        /// The limit.
        found: u64,
        /// What many shards need.
        advised: u64,
    },
}

impl Finding {
    /// Whether the broker cannot start. Otherwise it is a warning.
    pub fn is_fatal(&self) -> bool {
        match self {
            Finding::Kernel { .. }
            | Finding::IoUringForbidden { .. }
            | Finding::IoUringMissing { .. }
            | Finding::LockedMemory { .. }
            | Finding::TooManyCores { .. }
            | Finding::CpuNotAllowed { .. }
            | Finding::DataFolder { .. }
            | Finding::OpenFiles { .. } => true,
            Finding::LockedMemoryTight { .. }
            | Finding::CpuQuota { .. }
            | Finding::SocketBuffer { .. }
            | Finding::OpenFilesTight { .. }
            | Finding::DataFolderInMemory { .. } => false,
        }
    }
}

/// The lines a Kubernetes manifest needs for io_uring and locked memory.
pub const MANIFEST: &str = "\
      # Pod: the default seccomp profile of containerd and Docker forbids io_uring.
      securityContext:
        seccompProfile: { type: Localhost, localhostProfile: felix/io-uring.json }  # or type: Unconfined
      # Container: whole CPUs, so that the static CPU manager gives a CPU set of its own.
      resources: { requests: { cpu: \"2\", memory: 4Gi }, limits: { cpu: \"2\", memory: 4Gi } }
      # Node: containerd.service needs LimitMEMLOCK=infinity; sysctl kernel.io_uring_disabled=0";

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Finding::Kernel { found } => write!(
                f,
                "kernel {found:?} found; {}.{} or newer is needed for io_uring as the cores use it; boot a newer kernel",
                KERNEL_MIN.0, KERNEL_MIN.1
            ),
            Finding::IoUringForbidden { errno, disabled } => {
                let error = io::Error::from_raw_os_error(*errno);
                match disabled {
                    Some(level) if *level > 0 => write!(
                        f,
                        "io_uring is refused ({error}) and kernel.io_uring_disabled is {level}; 0 is needed; \
                         run: sysctl -w kernel.io_uring_disabled=0"
                    ),
                    _ => write!(
                        f,
                        "io_uring is refused ({error}); a seccomp profile or security module forbids it; \
                         in Docker: --security-opt seccomp=unconfined or a profile that allows io_uring_setup, \
                         io_uring_enter and io_uring_register; in Kubernetes:\n{MANIFEST}"
                    ),
                }
            }
            Finding::IoUringMissing { errno } => write!(
                f,
                "io_uring is missing ({}); a kernel built with CONFIG_IO_URING is needed; \
                 sandboxes such as gVisor have none: choose another runtime class",
                io::Error::from_raw_os_error(*errno)
            ),
            Finding::LockedMemory { found, needed } => write!(
                f,
                "{found} bytes may be locked (RLIMIT_MEMLOCK); {needed} are needed; raise it: ulimit -l {}, \
                 LimitMEMLOCK=infinity in the systemd unit, or on the container runtime; in Kubernetes:\n{MANIFEST}",
                needed / 1024
            ),
            Finding::LockedMemoryTight { found, needed } => write!(
                f,
                "{found} bytes may be locked (RLIMIT_MEMLOCK); {needed} are advised for this number of cores, else \
                 buffers are not registered and disk reads cost more; raise it: ulimit -l {}, or \
                 LimitMEMLOCK=infinity in the systemd unit or on the container runtime",
                needed / 1024
            ),
            Finding::TooManyCores { allowed, cores } => write!(
                f,
                "{} CPUs are allowed to this process ({}); {cores} cores are asked for; choose a smaller --cores, or \
                 widen the CPU set (taskset, cpuset.cpus, the pod's CPU limit)",
                allowed.len(),
                ranges(allowed)
            ),
            Finding::CpuNotAllowed { allowed, cpu } => write!(
                f,
                "CPU {cpu} is not allowed to this process; allowed are {}; choose among these, or widen the CPU set",
                ranges(allowed)
            ),
            Finding::CpuQuota { found_milli, cores } => write!(
                f,
                "the cgroup grants {}.{:03} CPUs of time; {cores} cores can use {cores}; a core that is throttled \
                 stalls for tens of milliseconds; give whole CPUs and no quota (Kubernetes: equal integer request \
                 and limit, static CPU manager) or choose a smaller --cores",
                found_milli / 1000,
                found_milli % 1000
            ),
            Finding::SocketBuffer { sysctl, found, needed } => write!(
                f,
                "{sysctl} is {found}; {needed} bytes are asked for per socket; bursts may be lost; \
                 run: sysctl -w {sysctl}={needed}"
            ),
            Finding::DataFolder { folder, problem } => {
                write!(f, "the data folder {} cannot hold data: {problem}; {}", folder.display(), advice(problem))
            }
            Finding::DataFolderInMemory { folder } => write!(
                f,
                "the data folder {} lies in memory (tmpfs): all data is lost when the machine or container stops; \
                 choose a --data on a disk (in Kubernetes: a volume claim, not an emptyDir of medium Memory)",
                folder.display()
            ),
            Finding::OpenFiles { found, needed } => write!(
                f,
                "{found} files may be open (RLIMIT_NOFILE); {needed} are needed; raise it: ulimit -n {needed}, or \
                 LimitNOFILE={needed} in the systemd unit"
            ),
            Finding::OpenFilesTight { found, advised } => write!(
                f,
                "{found} files may be open (RLIMIT_NOFILE, hard): with many durable shards or readers of history some wait for \
                 others; {advised} are advised; raise it: ulimit -H -n {FILES_WANTED}, or LimitNOFILE={FILES_WANTED} in the \
                 systemd unit or on the container runtime"
            ),
        }
    }
}

impl std::error::Error for Finding {}

/// What to do about a folder.
fn advice(problem: &FolderProblem) -> &'static str {
    match (problem.step, problem.error) {
        (_, Some(DiskError::Full)) => "free space or quota on its file system, or choose another --data",
        (_, Some(DiskError::Io { errno: libc::EACCES | libc::EPERM | libc::EROFS })) => {
            "give this user the right to write there (in Kubernetes: fsGroup, no readOnly mount), or choose another --data"
        }
        (FolderStep::Create | FolderStep::Write | FolderStep::Read, Some(DiskError::Io { errno: libc::EINVAL })) => {
            "its file system takes no direct I/O (O_DIRECT) in blocks of 4 KiB; choose a --data on ext4 or XFS on a local \
             disk (not tmpfs of a kernel before 6.6, not a network share or an encrypted overlay)"
        }
        (FolderStep::Start, _) => "io_uring and a thread are needed; see the other findings",
        (FolderStep::Sync, _) => "it cannot promise that data survives; choose a --data on a local disk",
        _ => "look at the kernel log for errors of the device, or choose another --data",
    }
}

/// Tries the data folder, which exists and which nobody else uses: a direct write, a data sync and a read.
pub fn data_folder(folder: &Path) -> Vec<Finding> {
    let folder = folder.to_path_buf();
    if let Err(problem) = try_folder(&folder) {
        return vec![Finding::DataFolder { folder, problem }];
    }
    if is_in_memory(&folder) { vec![Finding::DataFolderInMemory { folder }] } else { Vec::new() }
}

/// Gathers, judges, and returns all findings. The first fatal one should end the start; the others are for the log.
pub fn run(wanted: &Wanted) -> io::Result<(Facts, Vec<Finding>)> {
    let facts = gather(wanted)?;
    let findings = judge(&facts, wanted);
    Ok((facts, findings))
}

/// Reads the facts, after raising this process's soft limits: of locked memory as far as needed, of open files as far as
/// allowed.
pub fn gather(wanted: &Wanted) -> io::Result<Facts> {
    let may_force_buffers = capability(12);
    Ok(Facts {
        kernel: read("/proc/sys/kernel/osrelease").unwrap_or_default(),
        io_uring: sys::try_io_uring().map_err(|error| error.raw_os_error().unwrap_or(0)),
        io_uring_disabled: number("/proc/sys/kernel/io_uring_disabled"),
        locked_memory: sys::raise_soft_limit(Resource::LockedMemory, locked_needed(wanted))?,
        open_files: raise_open_files(files_needed(wanted))?,
        cpus: sys::allowed_cpus()?,
        cpu_quota_milli: read("/sys/fs/cgroup/cpu.max").as_deref().and_then(quota_milli),
        receive_bytes_max: number("/proc/sys/net/core/rmem_max"),
        send_bytes_max: number("/proc/sys/net/core/wmem_max"),
        may_force_buffers,
    })
}

/// The system may refuse to raise it, if its own maximum was lowered since; what holds then is judged.
fn raise_open_files(needed: u64) -> io::Result<Limit> {
    sys::raise_soft_limit(Resource::OpenFiles, needed.max(FILES_WANTED)).or_else(|_| sys::limit(Resource::OpenFiles))
}

/// Judges facts. Fatal findings come first.
pub fn judge(facts: &Facts, wanted: &Wanted) -> Vec<Finding> {
    let mut findings = Vec::new();
    if kernel_version(&facts.kernel).is_none_or(|version| version < KERNEL_MIN) {
        findings.push(Finding::Kernel { found: facts.kernel.clone() });
    }
    match facts.io_uring {
        Ok(()) => {}
        Err(errno @ (libc::EPERM | libc::EACCES)) => {
            findings.push(Finding::IoUringForbidden { errno, disabled: facts.io_uring_disabled });
        }
        // Before 5.12 rings are charged to locked memory: too little of it is said by the check below.
        Err(libc::ENOMEM) if facts.locked_memory.soft < locked_needed(wanted) => {}
        Err(errno) => findings.push(Finding::IoUringMissing { errno }),
    }
    let (found, needed) = (facts.locked_memory.soft, locked_needed(wanted));
    if found < LOCKED_BYTES_PER_CORE || (found < needed && facts.io_uring == Err(libc::ENOMEM)) {
        findings.push(Finding::LockedMemory { found, needed });
    }
    match &wanted.cpus {
        Some(cpus) => findings.extend(
            cpus.iter()
                .filter(|cpu| !facts.cpus.contains(cpu))
                .map(|&cpu| Finding::CpuNotAllowed { allowed: facts.cpus.clone(), cpu }),
        ),
        None if wanted.cores > facts.cpus.len() => {
            findings.push(Finding::TooManyCores { allowed: facts.cpus.clone(), cores: wanted.cores });
        }
        None => {}
    }
    let needed = files_needed(wanted);
    if facts.open_files.soft < needed {
        findings.push(Finding::OpenFiles { found: facts.open_files.soft, needed });
    }
    let advised = needed + wanted.cores as u64 * FILES_OF_MANY_SHARDS;
    if (needed..advised).contains(&facts.open_files.soft) {
        findings.push(Finding::OpenFilesTight { found: facts.open_files.soft, advised });
    }
    let needed = locked_needed(wanted);
    if (LOCKED_BYTES_PER_CORE..needed).contains(&found) && facts.io_uring != Err(libc::ENOMEM) {
        findings.push(Finding::LockedMemoryTight { found, needed });
    }
    if let Some(found_milli) = facts.cpu_quota_milli
        && found_milli < wanted.cores as u64 * 1000
    {
        findings.push(Finding::CpuQuota { found_milli, cores: wanted.cores });
    }
    for (sysctl, found, needed) in [
        ("net.core.rmem_max", facts.receive_bytes_max, wanted.receive_bytes),
        ("net.core.wmem_max", facts.send_bytes_max, wanted.send_bytes),
    ] {
        if let Some(found) = found
            && found < needed
            && !facts.may_force_buffers
        {
            findings.push(Finding::SocketBuffer { sysctl, found, needed });
        }
    }
    findings
}

fn locked_needed(wanted: &Wanted) -> u64 {
    LOCKED_BYTES_PER_CORE * wanted.cores.max(1) as u64
}

fn files_needed(wanted: &Wanted) -> u64 {
    FILES_BASE + FILES_PER_CORE * wanted.cores as u64 + wanted.data_files
}

/// Major and minor of a kernel release.
fn kernel_version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|character: char| !character.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// `cpu.max` of cgroup 2: `max 100000` or `150000 100000`.
fn quota_milli(text: &str) -> Option<u64> {
    let mut parts = text.split_whitespace();
    let quota: u64 = parts.next()?.parse().ok()?;
    let period: u64 = parts.next()?.parse().ok()?;
    (quota * 1000).checked_div(period)
}

/// Whether the process has the effective capability of this number.
fn capability(number: u32) -> bool {
    let status = read("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & (1 << number) != 0)
}

fn read(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_string())
}

fn number(path: &str) -> Option<u64> {
    read(path)?.parse().ok()
}

/// `0-3,8` for a list of CPUs.
fn ranges(cpus: &[usize]) -> String {
    let mut text = String::new();
    let mut rest = cpus;
    while let Some((&first, _)) = rest.split_first() {
        let length = rest.iter().enumerate().take_while(|(at, cpu)| **cpu == first + at).count();
        if !text.is_empty() {
            text.push(',');
        }
        match length {
            1 => text.push_str(&first.to_string()),
            _ => text.push_str(&format!("{first}-{}", first + length - 1)),
        }
        rest = &rest[length..];
    }
    if text.is_empty() { "none".to_string() } else { text }
}

#[cfg(test)]
mod tests;
