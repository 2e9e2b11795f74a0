//! How a user gets an e-mail address for themselves: whoever registers, or changes theirs, asks its reservation first.
//!
//! ```text
//! register, change-email ─ waits, and asks ─► reservation ─┬─ granted ─► UserRegistered, EmailChanged ─ confirm ─► reservation
//!                                                          │                           └─ release ─► that of the former address
//!                                                          └─ denied ──► refused: email-taken
//! UserErased ─ release ─► reservation
//! ```
//! A command that is refused for another reason once it is granted, since the user was erased meanwhile, releases what it asked
//! for. What gets lost in between, the reservation finds out by itself: see its `process.rs`.

use super::{
    commands::{AnswerClaim, Command},
    events::Event,
    state::User,
};
use crate::{
    domain::{
        AggregateId,
        email_reservation::{
            self, ConfirmReservation, EmailReservation, ReleaseReservation, ReserveEmail, TAKEN, id_of,
        },
        process::{About, Answer, Errand, Question, Which},
    },
    personal::HashSecret,
};

const RESERVE: &str = "reserve";

pub(super) fn prepare(command: &mut Command, secret: &HashSecret) {
    match command {
        Command::RegisterUser(register) => register.reservation = Some(id_of(&register.email.normalised(), secret)),
        Command::ChangeEmail(change) => change.reservation = Some(id_of(&change.email.normalised(), secret)),
        Command::ChangeName(_)
        | Command::ChangeAddress(_)
        | Command::DeactivateUser(_)
        | Command::ReactivateUser(_)
        | Command::EraseUser(_)
        | Command::AnswerClaim(_)
        | Command::AskClaim(_) => {}
    }
}

/// Id of the reservation that a command needs.
fn wanted(command: &Command) -> Option<&str> {
    match command {
        Command::RegisterUser(register) => register.reservation.as_deref(),
        Command::ChangeEmail(change) => change.reservation.as_deref(),
        Command::ChangeName(_)
        | Command::ChangeAddress(_)
        | Command::DeactivateUser(_)
        | Command::ReactivateUser(_)
        | Command::EraseUser(_)
        | Command::AnswerClaim(_)
        | Command::AskClaim(_) => None,
    }
}

/// The same address in another spelling has the same reservation. One that was reserved under another secret has another.
pub(super) fn must_ask(user: &User, command: &Command) -> bool {
    wanted(command).is_some_and(|wanted| user.reservation() != Some(wanted))
}

pub(super) fn question(id: &str, command: &Command, claim: &str) -> Option<Question> {
    let (reservation, holder) = (wanted(command)?, AggregateId::new(id).ok()?);
    let errand =
        |step, command| Errand::to::<EmailReservation>(reservation, step, command).that_is(Which::Of(claim.to_owned()));
    let reserve = ReserveEmail { holder: holder.clone(), claim: claim.to_owned() };
    let release = ReleaseReservation { holder, claim: Some(claim.to_owned()) };
    Some(Question {
        ask: errand(RESERVE, email_reservation::Command::ReserveEmail(reserve)),
        undo: errand("undo", email_reservation::Command::ReleaseReservation(release)),
    })
}

pub(super) fn conclude(step: &str, answer: Answer<'_>) -> Option<Command> {
    // Nobody waits for the answers to the other steps.
    let claim = step.strip_prefix(RESERVE)?.strip_prefix('-')?.to_owned();
    Some(Command::AnswerClaim(AnswerClaim { claim, is_granted: matches!(answer, Answer::Accepted) }))
}

pub(super) fn about(command: &Command) -> Option<About<'_>> {
    match command {
        Command::AnswerClaim(AnswerClaim { claim, is_granted: true }) => Some(About::Granted(claim)),
        Command::AnswerClaim(AnswerClaim { claim, is_granted: false }) => Some(About::Denied(claim, TAKEN)),
        Command::AskClaim(ask) => Some(About::Awaited(&ask.claim)),
        Command::RegisterUser(_)
        | Command::ChangeName(_)
        | Command::ChangeEmail(_)
        | Command::ChangeAddress(_)
        | Command::DeactivateUser(_)
        | Command::ReactivateUser(_)
        | Command::EraseUser(_) => None,
    }
}

pub(super) fn react(id: &str, before: &User, event: &Event) -> Vec<Errand> {
    // No other id was ever registered.
    let Ok(holder) = AggregateId::new(id) else { return Vec::new() };
    let errand = |reservation: &str, step, command| {
        Errand::to::<EmailReservation>(reservation, step, command).that_is(Which::AfterEvent)
    };
    let confirm = |reservation: &str| {
        let confirm = ConfirmReservation { holder: holder.clone() };
        errand(reservation, "confirm", email_reservation::Command::ConfirmReservation(confirm))
    };
    let release = |reservation: &str| {
        let release = ReleaseReservation { holder: holder.clone(), claim: None };
        errand(reservation, "release", email_reservation::Command::ReleaseReservation(release))
    };
    let mut after = before.clone();
    after.evolve(event);
    match (before.reservation(), after.reservation()) {
        (before, after) if before == after => Vec::new(),
        (before, after) => after.map(confirm).into_iter().chain(before.map(release)).collect(),
    }
}
