//! How many streams may be open at a time: in all, and to one caller.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use metrics::{counter, gauge};
use millrace_shared::problem::{OVERLOADED, Problem, UNAVAILABLE};

use super::stream::CUT_OFF;

const OPEN: &str = "millrace_query_streams";
const REFUSED: &str = "millrace_query_streams_refused_total";

/// Counts open streams.
#[derive(Debug)]
pub struct Places {
    most: usize,
    per_caller: usize,
    open: Mutex<HashMap<IpAddr, usize>>,
}

/// A stream that is open.
#[derive(Debug)]
pub struct Place {
    places: Arc<Places>,
    caller: IpAddr,
}

impl Places {
    /// `most` in all, `per_caller` for each address.
    pub fn new(most: usize, per_caller: usize) -> Arc<Self> {
        gauge!(OPEN).set(0.0);
        counter!(REFUSED).increment(0);
        counter!(CUT_OFF).increment(0);
        Arc::new(Self { most, per_caller, open: Mutex::default() })
    }

    /// Takes one.
    ///
    /// # Errors
    /// When there is none left.
    pub fn take(self: &Arc<Self>, caller: IpAddr) -> Result<Place, Problem> {
        let caller = caller.to_canonical();
        let mut open = self.open();
        let all: usize = open.values().sum();
        let own = open.get(&caller).copied().unwrap_or(0);
        let problem = if own >= self.per_caller {
            let detail = format!("{own} streams are open to {caller}, as many as may be for one address");
            Some(Problem::new(&OVERLOADED, detail))
        } else if all >= self.most {
            Some(Problem::new(&UNAVAILABLE, format!("{all} streams are open, as many as may be")))
        } else {
            None
        };
        if let Some(problem) = problem {
            counter!(REFUSED).increment(1);
            return Err(problem.retry_after(10));
        }
        open.insert(caller, own + 1);
        gauge!(OPEN).increment(1);
        Ok(Place { places: self.clone(), caller })
    }

    fn open(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.places.open();
        if let Some(own) = open.get_mut(&self.caller) {
            *own -= 1;
            if *own == 0 {
                open.remove(&self.caller);
            }
        }
        gauge!(OPEN).decrement(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn g16_streams_are_bounded_for_each_caller_and_in_all() {
        let places = Places::new(3, 2);
        let (ada, bob): (IpAddr, IpAddr) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        let first = places.take(ada).unwrap();
        let _second = places.take("::ffff:10.0.0.1".parse().unwrap()).unwrap();
        assert!(places.take(ada).unwrap_err().is(&OVERLOADED));
        let _third = places.take(bob).unwrap();
        assert!(places.take(bob).unwrap_err().is(&UNAVAILABLE));
        drop(first);
        assert!(places.take(bob).is_ok());
        assert_eq!(places.open().len(), 2);
    }
}
