//! **What**: the seeded bugs. Each is a way in which the pieces around or between the state machines could be wrong; the
//! model must notice every one.

/// One bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// A commit is lost in the mesh.
    DropCommit,
    /// Two messages from the owner overtake each other.
    Reorder,
    /// A commit that finds the mesh full is not given back.
    SkipCommitRefused,
    /// The owner is never told that the mesh has room again.
    SkipMeshHasRoom,
    /// A scheduled subscriber is forgotten: a lost wake-up.
    LoseWakeUp,
    /// A delivery is sent twice.
    DeliverTwice,
    /// A gap notice is not sent.
    ForgetGap,
    /// A subscription starts one offset late.
    WrongStart,
    /// The lineage of a start position is not compared.
    IgnoreLineage,
    /// The answer to a fetch is lost.
    DropFetch,
    /// A core does not learn that a shard is gone.
    DropGone,
    /// A grant of credit is lost.
    DropCredit,
    /// What was sent is not counted against the credit.
    SkipCharge,
    /// The owner does not learn that a core's last subscriber left.
    DropDetach,
    /// A retry is sent as if it came from nobody, so it is appended twice.
    RetryAnonymously,
    /// Expired records are delivered: the clock stands still for the fan-out.
    StoppedClock,
    /// An answer for one subscription goes to a later one in the same slot.
    IgnoreGeneration,
}

impl Mutation {
    pub const ALL: [Mutation; 17] = [
        Mutation::DropCommit,
        Mutation::Reorder,
        Mutation::SkipCommitRefused,
        Mutation::SkipMeshHasRoom,
        Mutation::LoseWakeUp,
        Mutation::DeliverTwice,
        Mutation::ForgetGap,
        Mutation::WrongStart,
        Mutation::IgnoreLineage,
        Mutation::DropFetch,
        Mutation::DropGone,
        Mutation::DropCredit,
        Mutation::SkipCharge,
        Mutation::DropDetach,
        Mutation::RetryAnonymously,
        Mutation::StoppedClock,
        Mutation::IgnoreGeneration,
    ];
}
