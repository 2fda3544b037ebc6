//! **What**: a file system for tests, served over FUSE from memory, that forgets at a crash what was not synced.
//!
//! ```text
//! write, truncate, create, rename, ... -> live      fsync of a file -> its data durable      fsync of a folder -> names durable
//! crash: every file as it is durable, but each sector written since may survive; of the changes of names since, the first few
//! ```
//!
//! Names are one journal: a change is durable only with all before it, and the fsync of a folder commits up to its last
//! change. The fsync of a file says nothing of its name, which is harsher than ext4 and what POSIX allows.
//!
//! **Invariants**: nothing is cached by the kernel (direct I/O, times to live of zero), so after `crash` nobody sees what is
//! gone. Which sectors survive is decided by the seed alone.
//!
//! **Never**: a promise about what was not synced.
//!
//! **See**: `lossy_disk.rs`, the tests; `felix_wal::mem_disk`, the same for one process.

mod state;

use fuser::*;
use state::{INO_ROOT, State};
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What goes wrong with the write-ahead log, once; what is asked for again succeeds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    Write,
    /// What it should have made durable never will be.
    Sync,
}

/// A mounted file system. The drop unmounts it.
pub struct LossyFs {
    state: Arc<Mutex<State>>,
    mount: PathBuf,
    session: Option<BackgroundSession>,
}

impl LossyFs {
    /// Mounts one. An error: FUSE cannot be used here.
    pub fn mount(name: &str, seed: u64) -> io::Result<LossyFs> {
        let mount = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("lossy-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&mount)?;
        let state = Arc::new(Mutex::new(State::new(seed)));
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("felix-lossy".into())];
        let session = spawn_mount(Server(state.clone()), &mount, &config)?;
        Ok(LossyFs { state, mount, session: Some(session) })
    }

    /// A folder in it.
    pub fn path(&self) -> PathBuf {
        self.mount.join("data")
    }

    /// Power fails. Nobody may have a file open.
    pub fn crash(&self) {
        self.state.lock().unwrap().crash();
    }

    /// The next write of a group to the write-ahead log, or the next sync of one, fails.
    pub fn fail_once(&self, trouble: Trouble) {
        self.state.lock().unwrap().trouble = Some(trouble);
    }

    /// It has failed.
    pub fn has_failed(&self) -> bool {
        self.state.lock().unwrap().trouble.is_none()
    }

    /// Syncs of files so far.
    pub fn syncs(&self) -> u64 {
        self.state.lock().unwrap().syncs
    }
}

impl Drop for LossyFs {
    fn drop(&mut self) {
        if let Some(session) = self.session.take() {
            let _ = session.umount_and_join();
        }
        let _ = std::fs::remove_dir(&self.mount);
    }
}

struct Server(Arc<Mutex<State>>);

const NO_TIME: Duration = Duration::ZERO;

fn attributes(state: &State, ino: u64) -> Option<FileAttr> {
    let (is_folder, size) = state.facts(ino)?;
    let time: SystemTime = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    Some(FileAttr {
        ino: INodeNo(ino),
        size,
        blocks: size.div_ceil(512),
        atime: time,
        mtime: time,
        ctime: time,
        crtime: time,
        kind: if is_folder { FileType::Directory } else { FileType::RegularFile },
        perm: if is_folder { 0o700 } else { 0o600 },
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4_096,
        flags: 0,
    })
}

fn empty(reply: ReplyEmpty, result: Result<(), i32>) {
    match result {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(Errno::from_i32(errno)),
    }
}

impl Server {
    fn entry(&self, reply: ReplyEntry, found: impl FnOnce(&mut State) -> Result<u64, i32>) {
        let mut state = self.0.lock().unwrap();
        match found(&mut state) {
            Ok(ino) => match attributes(&state, ino) {
                Some(attributes) => reply.entry(&NO_TIME, &attributes, Generation(0)),
                None => reply.error(Errno::ENOENT),
            },
            Err(errno) => reply.error(Errno::from_i32(errno)),
        }
    }
}

impl Filesystem for Server {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.entry(reply, |state| state.find(parent.0, name).ok_or(libc::ENOENT));
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match attributes(&self.0.lock().unwrap(), ino.0) {
            Some(attributes) => reply.attr(&NO_TIME, &attributes),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let mut state = self.0.lock().unwrap();
        if let Some(size) = size {
            state.truncate(ino.0, size);
        }
        match attributes(&state, ino.0) {
            Some(attributes) => reply.attr(&NO_TIME, &attributes),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        self.entry(reply, |state| state.make(parent.0, name, true));
    }

    fn create(&self, _: &Request, parent: INodeNo, name: &OsStr, _: u32, _: u32, _: i32, reply: ReplyCreate) {
        let mut state = self.0.lock().unwrap();
        match state.make(parent.0, name, false) {
            Ok(ino) => {
                let attributes = attributes(&state, ino).expect("just made");
                reply.created(&NO_TIME, &attributes, Generation(0), FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
            }
            Err(errno) => reply.error(Errno::from_i32(errno)),
        }
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(reply, self.0.lock().unwrap().remove(parent.0, name));
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(reply, self.0.lock().unwrap().remove(parent.0, name));
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        to: INodeNo,
        to_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let keeps = flags.contains(RenameFlags::RENAME_NOREPLACE);
        empty(reply, self.0.lock().unwrap().rename((parent.0, name), (to.0, to_name), keeps));
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        reply.data(&self.0.lock().unwrap().read(ino.0, offset, size as usize));
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.0.lock().unwrap().write(ino.0, offset, data) {
            Ok(()) => reply.written(data.len() as u32),
            Err(errno) => reply.error(Errno::from_i32(errno)),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        empty(reply, self.0.lock().unwrap().sync(ino.0));
    }

    fn fsyncdir(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.0.lock().unwrap().sync_folder(ino.0);
        reply.ok();
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let state = self.0.lock().unwrap();
        let inside = state.list(ino.0);
        let all = [(INO_ROOT, ".".into()), (INO_ROOT, "..".into())].into_iter().chain(inside);
        for (at, (child, name)) in all.enumerate().skip(offset as usize) {
            let is_folder = state.facts(child).is_some_and(|(is_folder, _)| is_folder);
            let kind = if is_folder { FileType::Directory } else { FileType::RegularFile };
            if reply.add(INodeNo(child), at as u64 + 1, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        // 64 GiB, nearly all of it free.
        let blocks = 16 << 20;
        reply.statfs(blocks, blocks - (1 << 10), blocks - (1 << 10), 1 << 20, 1 << 20, 4_096, 255, 4_096);
    }

    fn access(&self, _: &Request, _: INodeNo, _: AccessFlags, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fallocate(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        if mode != 0 {
            return reply.error(Errno::from_i32(libc::EOPNOTSUPP));
        }
        let mut state = self.0.lock().unwrap();
        let size = state.facts(ino.0).map_or(0, |(_, size)| size);
        if offset + length > size {
            state.truncate(ino.0, offset + length);
        }
        reply.ok();
    }
}
