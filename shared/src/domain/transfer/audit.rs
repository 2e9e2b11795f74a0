//! What an event must be for the log to hold the rules. Written apart from `decide`, which wrote that log.

use super::{
    events::Event,
    process::Step,
    state::{Terms, Transfer},
};

pub(super) fn audit(transfer: &Transfer, event: &Event) -> Result<(), String> {
    let told = |terms: &Terms, from: &str, to: &str, amount_minor: i64, currency: &str| {
        let same = terms.from == from && terms.to == to && terms.amount_minor == amount_minor;
        if same && terms.currency == currency {
            Ok(())
        } else {
            Err("its terms are not those of the request".to_owned())
        }
    };
    match (transfer, event) {
        (Transfer::Unknown, Event::TransferRequested(requested)) => {
            if requested.from == requested.to {
                return Err("an account pays itself".into());
            }
            let is_amount = (1..=1_000_000_000_000_000).contains(&requested.amount_minor);
            if is_amount { Ok(()) } else { Err(format!("{} is no amount", requested.amount_minor)) }
        }
        (Transfer::Unknown, _) => Err("it happened before the transfer was requested".into()),
        (_, Event::TransferRequested(_)) => Err("the transfer was requested twice".into()),
        (Transfer::Requested(terms), Event::TransferDebited(e)) => {
            told(terms, &e.from, &e.to, e.amount_minor, &e.currency)
        }
        (Transfer::Requested(_), Event::TransferRefused(_)) => Ok(()),
        (Transfer::Debited(terms), Event::TransferCompleted(completed))
            if completed.from == terms.from && completed.to == terms.to =>
        {
            Ok(())
        }
        (Transfer::Debited(terms), Event::RefundOrdered(ordered)) if ordered.from == terms.from && !ordered.late => {
            Ok(())
        }
        (Transfer::Refused { terms, .. }, Event::RefundOrdered(ordered))
            if ordered.from == terms.from && ordered.late =>
        {
            Ok(())
        }
        (Transfer::Refunding { reason, .. }, Event::TransferCompensated(compensated)) => {
            if *reason == compensated.reason { Ok(()) } else { Err("its reason is not that of the refund".into()) }
        }
        (
            Transfer::Requested(terms)
            | Transfer::Debited(terms)
            | Transfer::Refunding { terms, .. }
            | Transfer::Completed(terms),
            Event::TransferRetried(e),
        ) => {
            let waits_for = match transfer {
                Transfer::Requested(_) => Step::Debit,
                Transfer::Debited(_) => Step::Credit,
                Transfer::Completed(_) => Step::Settle,
                _ => Step::Refund,
            };
            match e.step == waits_for {
                true => told(terms, &e.from, &e.to, e.amount_minor, &e.currency),
                false => Err(format!("{:?} was sent once more, but {waits_for:?} is what it waits for", e.step)),
            }
        }
        _ => Err("the transfer was elsewhere, or had ended".into()),
    }
}
