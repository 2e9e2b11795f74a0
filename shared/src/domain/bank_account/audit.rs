//! What an event must be for the log to hold the rules. Written apart from `decide`, which wrote that log.

use super::{
    events::Event,
    state::Account,
    values::{MAX_AMOUNT_MINOR, MAX_BALANCE_MINOR, Reference, is_owner},
};

pub(super) fn audit(account: &Account, event: &Event) -> Result<(), String> {
    let open = match (account, event) {
        (Account::Unopened, Event::AccountOpened(opened)) => {
            // Not only active codes: a currency may be superseded long after the account was opened.
            let is_code = opened.currency.len() == 3 && opened.currency.bytes().all(|byte| byte.is_ascii_uppercase());
            return match (is_code, is_owner(&opened.owner)) {
                (true, true) => Ok(()),
                (false, _) => Err(format!("it was opened in {:?}, which is no currency", opened.currency)),
                (_, false) => Err("it was opened for nobody that can be an owner".into()),
            };
        }
        (Account::Unopened, _) => return Err("it happened before the account was opened".into()),
        (Account::Closed, _) => return Err("it happened after the account was closed".into()),
        (Account::Open(_), Event::AccountOpened(_)) => return Err("the account was opened twice".into()),
        (Account::Open(open), _) => open,
    };
    let balance_minor = open.balance_minor;
    match event {
        Event::AccountOpened(_) => Ok(()),
        Event::AccountClosed(_) if !open.held.is_empty() => {
            Err("the account was closed while transfers were held".into())
        }
        Event::AccountClosed(_) if balance_minor == 0 => Ok(()),
        Event::AccountClosed(_) => Err(format!("the account was closed with a balance of {balance_minor}")),
        Event::MoneyDeposited(deposited) => {
            payment(deposited.amount_minor, deposited.reference.as_deref())?;
            match balance_minor.checked_add(deposited.amount_minor) {
                Some(balance) if balance <= MAX_BALANCE_MINOR => Ok(()),
                _ => Err(format!("the balance grew beyond {MAX_BALANCE_MINOR}")),
            }
        }
        Event::MoneyWithdrawn(withdrawn) => {
            payment(withdrawn.amount_minor, withdrawn.reference.as_deref())?;
            match withdrawn.amount_minor <= balance_minor {
                true => Ok(()),
                false => Err(format!("{} was withdrawn from a balance of {balance_minor}", withdrawn.amount_minor)),
            }
        }
        Event::TransferHeld(held) => match open.held.of(&held.transfer_id) {
            _ if !(0..=MAX_AMOUNT_MINOR).contains(&held.amount_minor) => {
                Err(format!("{} is no amount", held.amount_minor))
            }
            None => Ok(()),
            Some(_) => Err(format!("transfer {} was held twice", held.transfer_id)),
        },
        Event::TransferReleased(released) => match open.held.of(&released.transfer_id) {
            Some(_) => Ok(()),
            None => Err(format!("transfer {} was released, but not held", released.transfer_id)),
        },
    }
}

fn payment(amount_minor: i64, reference: Option<&str>) -> Result<(), String> {
    if !(1..=MAX_AMOUNT_MINOR).contains(&amount_minor) {
        return Err(format!("{amount_minor} is no amount"));
    }
    let reference = reference.map(|text| Reference::try_from(text.to_owned())).transpose();
    reference.map(drop).map_err(|reason| format!("its reference {reason}"))
}
