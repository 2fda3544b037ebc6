//! Every verdict, from facts made up for it; and the facts of the machine the test runs on.

use super::*;

fn wanted() -> Wanted {
    Wanted { cores: 4, cpus: None, receive_bytes: 4 << 20, send_bytes: 4 << 20, data_files: 1000 }
}

fn good() -> Facts {
    Facts {
        kernel: "6.8.0-41-generic".into(),
        io_uring: Ok(()),
        io_uring_disabled: Some(0),
        locked_memory: Limit { soft: u64::MAX, hard: u64::MAX },
        open_files: Limit { soft: 100_000, hard: 100_000 },
        cpus: (0..8).collect(),
        cpu_quota_milli: None,
        receive_bytes_max: Some(4 << 20),
        send_bytes_max: Some(4 << 20),
        may_force_buffers: false,
    }
}

/// One changed fact gives one finding, of this severity, whose text has these parts.
#[track_caller]
fn check(change: impl FnOnce(&mut Facts, &mut Wanted), fatal: bool, parts: &[&str]) {
    let (mut facts, mut wanted) = (good(), wanted());
    change(&mut facts, &mut wanted);
    let findings = judge(&facts, &wanted);
    assert_eq!(findings.len(), 1, "{findings:?}");
    assert_eq!(findings[0].is_fatal(), fatal, "{findings:?}");
    let text = findings[0].to_string();
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
}

#[test]
fn a_good_machine_has_no_findings() {
    assert_eq!(judge(&good(), &wanted()), []);
}

#[test]
fn kernel() {
    check(|facts, _| facts.kernel = "5.4.0-150".into(), true, &["5.4.0-150", "5.8 or newer"]);
    check(|facts, _| facts.kernel = "".into(), true, &["5.8 or newer"]);
    let mut facts = good();
    facts.kernel = "5.10.0".into();
    assert_eq!(judge(&facts, &wanted()), []);
}

#[test]
fn io_uring() {
    check(
        |facts, _| {
            facts.io_uring = Err(libc::EPERM);
            facts.io_uring_disabled = Some(2);
        },
        true,
        &["kernel.io_uring_disabled is 2", "sysctl -w kernel.io_uring_disabled=0"],
    );
    check(|facts, _| facts.io_uring = Err(libc::EPERM), true, &["seccomp", "seccompProfile", "LimitMEMLOCK"]);
    check(|facts, _| facts.io_uring = Err(libc::ENOSYS), true, &["CONFIG_IO_URING", "gVisor"]);
}

#[test]
fn locked_memory() {
    check(
        |facts, _| facts.locked_memory = Limit { soft: 65_536, hard: 65_536 },
        true,
        &["65536 bytes", "2097152 are needed", "ulimit -l 2048", "LimitMEMLOCK=infinity"],
    );
    check(
        |facts, _| facts.locked_memory = Limit { soft: 1 << 20, hard: 1 << 20 },
        false,
        &["1048576 bytes", "2097152 are advised"],
    );
    // A kernel that charges rings to locked memory: one finding that names the cause, not two.
    check(
        |facts, _| {
            facts.locked_memory = Limit { soft: 1 << 20, hard: 1 << 20 };
            facts.io_uring = Err(libc::ENOMEM);
        },
        true,
        &["RLIMIT_MEMLOCK"],
    );
}

#[test]
fn cpus() {
    check(|facts, _| facts.cpus = vec![0, 2, 3], true, &["3 CPUs", "0,2-3", "4 cores", "--cores"]);
    check(|_, wanted| wanted.cpus = Some(vec![1, 9]), true, &["CPU 9", "0-7"]);
    check(|facts, _| facts.cpu_quota_milli = Some(2500), false, &["2.500 CPUs", "4 cores"]);
    assert_eq!(quota_milli("max 100000"), None);
    assert_eq!(quota_milli("150000 100000"), Some(1500));
    assert_eq!(quota_milli("1 0"), None);
    assert_eq!(ranges(&[]), "none");
    assert_eq!(ranges(&[0, 1, 2, 5, 7, 8]), "0-2,5,7-8");
}

#[test]
fn socket_buffers() {
    check(
        |facts, _| facts.receive_bytes_max = Some(212_992),
        false,
        &["212992", "sysctl -w net.core.rmem_max=4194304"],
    );
    check(|facts, _| facts.send_bytes_max = Some(1), false, &["net.core.wmem_max"]);
    let mut facts = good();
    facts.receive_bytes_max = Some(1);
    facts.may_force_buffers = true;
    assert_eq!(judge(&facts, &wanted()), [], "CAP_NET_ADMIN goes beyond the maximum");
    facts.receive_bytes_max = None;
    facts.may_force_buffers = false;
    assert_eq!(judge(&facts, &wanted()), [], "a container may not see the sysctl");
}

#[test]
fn open_files() {
    check(
        |facts, _| facts.open_files = Limit { soft: 1024, hard: 1024 },
        true,
        &["1024 files", "1384 are needed", "ulimit -n 1384"],
    );
}

#[test]
fn few_open_files_are_told() {
    check(
        |facts, _| facts.open_files = Limit { soft: 1_500, hard: 1_500 },
        false,
        &["1500 files", "2984 are advised", "LimitNOFILE=1048576"],
    );
    let mut facts = good();
    facts.open_files = Limit { soft: 2_984, hard: 2_984 };
    assert_eq!(judge(&facts, &wanted()), []);
}

#[test]
fn fatal_findings_come_first() {
    let facts = Facts {
        kernel: "4.19.0".into(),
        open_files: Limit { soft: 10, hard: 10 },
        cpu_quota_milli: Some(1),
        send_bytes_max: Some(1),
        ..good()
    };
    let fatal: Vec<bool> = judge(&facts, &wanted()).iter().map(Finding::is_fatal).collect();
    assert_eq!(fatal, [true, true, false, false]);
}

/// The tests of this crate start executors, so the machine they run on must pass for one core.
#[test]
fn this_machine_passes_for_one_core() {
    let wanted = Wanted { cores: 1, data_files: 0, ..wanted() };
    let (facts, findings) = run(&wanted).unwrap();
    assert!(facts.locked_memory.soft >= LOCKED_BYTES_PER_CORE, "{facts:?}");
    assert!(!findings.iter().any(Finding::is_fatal), "{findings:?}");
}

#[test]
fn a_data_folder_is_tried_and_nothing_is_left() {
    let binary = std::env::current_exe().unwrap();
    let folder = binary.with_file_name(format!("self-check-folder-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    assert_eq!(data_folder(&folder), []);
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
    fs::remove_dir_all(&folder).unwrap();
    // A folder that is gone, and one on a file system of another kind.
    let found = data_folder(&folder);
    assert!(found[0].is_fatal() && found[0].to_string().contains("creating a file"), "{found:?}");
    let found = data_folder(Path::new("/proc"));
    assert!(found[0].is_fatal() && found[0].to_string().contains("choose another --data"), "{found:?}");
}

#[test]
fn what_is_wrong_with_a_folder_says_what_to_do() {
    let io = |errno| Some(DiskError::Io { errno });
    for (step, error, advice) in [
        (FolderStep::Create, io(libc::EINVAL), "choose a --data on ext4 or XFS"),
        (FolderStep::Write, io(libc::EINVAL), "O_DIRECT"),
        (FolderStep::Create, io(libc::EACCES), "fsGroup"),
        (FolderStep::Create, io(libc::EROFS), "right to write"),
        (FolderStep::Write, Some(DiskError::Full), "free space"),
        (FolderStep::Sync, io(libc::EIO), "survives"),
        (FolderStep::Start, io(libc::ENOSYS), "io_uring"),
        (FolderStep::Read, None, "kernel log"),
    ] {
        let problem = FolderProblem { step, error };
        let finding = Finding::DataFolder { folder: "/data".into(), problem };
        let text = finding.to_string();
        assert!(finding.is_fatal() && text.contains(advice) && text.contains("/data"), "{text}");
    }
    let finding = Finding::DataFolderInMemory { folder: "/dev/shm/felix".into() };
    assert!(!finding.is_fatal() && finding.to_string().contains("/dev/shm/felix"));
}
