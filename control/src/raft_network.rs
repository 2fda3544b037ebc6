//! **What**: how openraft would reach other members. An embedded member is the only one, so there is nobody to reach.
//!
//! **Invariants**: every call fails at once with [`NoPeers`], and as unreachable, so that openraft backs off instead of
//! trying again at once.
//!
//! **Never**: an answer that was not given by a member: a made-up one could count as a vote.
//!
//! **See**: `node.rs`; a network of more members takes this one's place behind the same traits.
#![allow(clippy::result_large_err, reason = "the error type is openraft's")]

use crate::raft_types::{Peer, RaftTypes};
use openraft::error::{InstallSnapshotError, RPCError, RaftError, Unreachable};
use openraft::network::RPCOption;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse, VoteRequest,
    VoteResponse,
};
use openraft::{RaftNetwork, RaftNetworkFactory};

/// A member was called that an embedded one cannot reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoPeers {
    /// The member that was called.
    pub target: u128,
}

impl std::fmt::Display for NoPeers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "node {:032x} is not reached: this member is embedded and the only one", self.target)
    }
}

impl std::error::Error for NoPeers {}

/// The network of a member that is alone.
#[derive(Clone, Copy, Debug, Default)]
pub struct EmbeddedNetwork;

/// The way to one member.
#[derive(Clone, Copy, Debug)]
pub struct NoWay {
    target: u128,
}

impl NoWay {
    fn refuse<T, E: std::error::Error>(&self) -> Result<T, RPCError<u128, Peer, E>> {
        Err(RPCError::Unreachable(Unreachable::new(&NoPeers { target: self.target })))
    }
}

impl RaftNetworkFactory<RaftTypes> for EmbeddedNetwork {
    type Network = NoWay;

    async fn new_client(&mut self, target: u128, _node: &Peer) -> NoWay {
        NoWay { target }
    }
}

impl RaftNetwork<RaftTypes> for NoWay {
    async fn append_entries(
        &mut self,
        _request: AppendEntriesRequest<RaftTypes>,
        _option: RPCOption,
    ) -> Result<AppendEntriesResponse<u128>, RPCError<u128, Peer, RaftError<u128>>> {
        self.refuse()
    }

    async fn install_snapshot(
        &mut self,
        _request: InstallSnapshotRequest<RaftTypes>,
        _option: RPCOption,
    ) -> Result<InstallSnapshotResponse<u128>, RPCError<u128, Peer, RaftError<u128, InstallSnapshotError>>> {
        self.refuse()
    }

    async fn vote(
        &mut self,
        _request: VoteRequest<u128>,
        _option: RPCOption,
    ) -> Result<VoteResponse<u128>, RPCError<u128, Peer, RaftError<u128>>> {
        self.refuse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn every_call_is_refused_and_names_its_target() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut way = EmbeddedNetwork.new_client(0xab, &Peer::default()).await;
            let option = || RPCOption::new(Duration::from_secs(1));
            let vote = openraft::Vote::new(1, 1);
            let answer = way.vote(VoteRequest::new(vote, None), option()).await;
            let error = answer.unwrap_err();
            assert!(matches!(error, RPCError::Unreachable(_)), "{error}");
            assert!(error.to_string().contains("node 000000000000000000000000000000ab is not reached"), "{error}");
            let append = AppendEntriesRequest { vote, prev_log_id: None, entries: vec![], leader_commit: None };
            assert!(matches!(way.append_entries(append, option()).await, Err(RPCError::Unreachable(_))));
        });
    }
}
