//! What a panic says. The code of a domain may quote what it was about; where that may be personal, only the place is told.

use std::{
    cell::Cell,
    marker::PhantomData,
    panic::{self, PanicHookInfo},
};

thread_local! {
    static IS_QUIET: Cell<bool> = const { Cell::new(false) };
}

/// As long as it lives, panics of this thread don't say what they are about.
#[derive(Debug)]
pub struct Quiet {
    before: bool,
    of_this_thread: PhantomData<*const ()>,
}

impl Quiet {
    /// Where personal data is at hand; else nothing changes.
    pub fn when(is_personal: bool) -> Self {
        Self { before: IS_QUIET.replace(is_personal || IS_QUIET.get()), of_this_thread: PhantomData }
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        IS_QUIET.set(self.before);
    }
}

/// Has panics told so. To be called once.
pub fn install() {
    let whole = panic::take_hook();
    panic::set_hook(hook(whole, |place| {
        eprintln!("panicked at {place}; what it says may be personal, and is not told")
    }));
}

type Hook = Box<dyn Fn(&PanicHookInfo<'_>) + Send + Sync>;

fn hook(whole: Hook, place_only: impl Fn(String) + Send + Sync + 'static) -> Hook {
    Box::new(move |info| {
        if IS_QUIET.get() {
            place_only(info.location().map_or_else(|| "an unknown place".to_owned(), ToString::to_string));
        } else {
            whole(info);
        }
    })
}

#[cfg(test)]
mod tests {
    use std::{
        panic::catch_unwind,
        sync::{Arc, Mutex},
    };

    use super::*;

    #[test]
    fn g14_a_panic_over_personal_data_tells_its_place_only() {
        let told = Arc::new(Mutex::new(Vec::new()));
        let (whole, place) = (told.clone(), told.clone());
        let here = |text: &str| text.contains(file!());
        let before = panic::take_hook();
        panic::set_hook(hook(Box::new(move |info| whole.lock().unwrap().push(info.to_string())), move |text| {
            place.lock().unwrap().push(text)
        }));
        let fall = |is_personal| {
            let _quiet = Quiet::when(is_personal);
            // An inner one changes nothing.
            drop(Quiet::when(false));
            panic!("Zaphira");
        };
        for is_personal in [true, false] {
            assert!(catch_unwind(|| fall(is_personal)).is_err());
        }
        panic::set_hook(before);
        // Other tests may panic meanwhile.
        let told: Vec<String> = told.lock().unwrap().iter().filter(|text| here(text)).cloned().collect();
        assert_eq!(told.len(), 2, "{told:?}");
        assert!(!told[0].contains("Zaphira") && told[1].contains("Zaphira"), "{told:?}");
    }
}
