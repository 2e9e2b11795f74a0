//! Rules as sentences, for the tests of any domain:
//! `given::<BankAccount>([opened]).when(withdraw).then_rejected(InsufficientFunds { … })`.

use std::fmt::Debug;

use jiff::Timestamp;

use super::Aggregate;

/// An aggregate to which these events have happened.
pub fn given<A: Aggregate>(events: impl IntoIterator<Item = A::Event>) -> Given<A> {
    let mut state = A::State::default();
    for event in events {
        A::evolve(&mut state, &event);
    }
    Given { state }
}

/// See [`given`].
#[derive(Debug)]
pub struct Given<A: Aggregate> {
    state: A::State,
}

impl<A: Aggregate> Given<A> {
    /// A command arrives, at a fixed time.
    pub fn when(self, command: A::Command) -> When<A> {
        self.when_at(command, Timestamp::UNIX_EPOCH)
    }

    /// A command arrives at this time.
    pub fn when_at(self, command: A::Command, at: Timestamp) -> When<A> {
        When { result: A::decide(&self.state, &command, at) }
    }
}

/// What came of the command.
#[derive(Debug)]
pub struct When<A: Aggregate> {
    result: Result<Vec<A::Event>, A::Rejection>,
}

impl<A: Aggregate> When<A>
where
    A::Event: PartialEq + Debug,
    A::Rejection: PartialEq + Debug,
{
    /// Exactly these events follow.
    #[track_caller]
    pub fn then(self, expected: impl IntoIterator<Item = A::Event>) {
        let expected: Vec<_> = expected.into_iter().collect();
        match self.result {
            Ok(events) => assert_eq!(events, expected),
            Err(rejection) => panic!("expected {expected:?}, but it was refused: {rejection:?}"),
        }
    }

    /// It is refused for exactly this reason.
    #[track_caller]
    pub fn then_rejected(self, expected: A::Rejection) {
        match self.result {
            Ok(events) => panic!("expected {expected:?}, but it was accepted: {events:?}"),
            Err(rejection) => assert_eq!(rejection, expected),
        }
    }
}
