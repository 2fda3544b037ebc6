use super::*;
use felix_wal::disk::{FilePath, Ticket};

fn request(number: u64, priority: Priority, op: DiskOp) -> DiskRequest {
    DiskRequest { ticket: Ticket(number), priority, op }
}

/// A zero-fill of a WAL file takes a second on a slow disk; what somebody waits for does not wait for it.
#[test]
fn an_urgent_job_runs_between_two_steps_of_a_zero_fill() {
    let binary = std::env::current_exe().unwrap();
    let root = binary.with_file_name(format!("disk-helper-{}", std::process::id()));
    std::fs::create_dir_all(&root).unwrap();
    let mut ports = Mesh::ports(2, LIMITS);
    let mut helper = Helper { port: ports.pop().unwrap(), jobs: VecDeque::new(), cores: 1 };
    let mut line = Line { port: ports.pop().unwrap() };
    let mut folder = Folder::new(&root);
    let path = |name: &str| FilePath(name.into());
    let create = DiskOp::Create { path: path("wal"), file: FileKey(1), bytes: 4 << 20, zeroed: true };
    line.send(request(1, Priority::Background, create), None);
    helper.take_mail();
    let zero_fill = helper.jobs.pop_front().unwrap();
    // These come while it runs.
    line.send(request(2, Priority::Background, DiskOp::List { path: path("none") }), None);
    line.send(request(3, Priority::Commit, DiskOp::Replace { path: path("meta"), bytes: vec![1] }), None);
    let nested = DiskOp::Create { path: path("wal-2"), file: FileKey(2), bytes: 4 << 20, zeroed: true };
    line.send(request(4, Priority::Commit, nested), None);
    helper.work(zero_fill, &mut folder);
    let mut answered = Vec::new();
    line.port().drain(100, |_, message| {
        let HelperMessage::Answer(answer) = message else { panic!("an answer") };
        assert!(answer.done.result.is_ok());
        answered.push(answer.done.ticket.0);
    });
    assert_eq!(answered, [3, 1]);
    assert_eq!(helper.jobs.len(), 2, "the others come later, a second zero-fill among them");
    std::fs::remove_dir_all(&root).unwrap();
}
