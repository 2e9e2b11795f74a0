use super::*;
use crate::domain::{Bundled, Domains, Visitor, bank_account};

/// What is wrong with a folder whose `recorded.jsonl` says this of bank accounts' events.
fn wrong_with(change: impl Fn(&mut Vec<Line>)) -> Vec<String> {
    let mut folder = Folder::open(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src/domain/bank_account/schemas")));
    folder.record = false;
    folder.lines.retain(|line| line.record.starts_with("millrace.bank_account.events."));
    change(&mut folder.lines);
    folder.hold::<bank_account::Event>(|_| None);
    folder.wrong
}

fn line<'a>(lines: &'a mut [Line], record: &str, version: usize) -> &'a mut Line {
    let found = lines.iter_mut().find(|line| line.record.ends_with(record) && line.version == version);
    found.unwrap()
}

#[test]
fn g12_every_version_of_every_record_is_as_it_was_recorded() {
    struct Check;
    impl Visitor for Check {
        fn visit<A: Aggregate>(&mut self) {
            let folder = A::TYPE.replace('-', "_");
            check::<A>(&format!("{}/src/domain/{folder}/schemas", env!("CARGO_MANIFEST_DIR")));
        }
    }
    Bundled::visit_all(&mut Check);
    let mut shared = Folder::open(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src/schemas")));
    shared.hold::<crate::outcome::OutcomeRecord>(|_| None);
    shared.hold::<crate::snapshot::CheckpointRecord>(|_| None);
    shared.hold::<crate::personal::KeyRecord>(|_| None);
    shared.finish();
}

#[test]
fn g12_a_recorded_version_that_was_changed_is_found() {
    assert_eq!(wrong_with(|_| {}), [""; 0]);
    let changed = wrong_with(|lines| line(lines, "MoneyDeposited", 1).sha256 = sha256("another text"));
    assert_eq!(
        changed,
        [
            "the schema of millrace.bank_account.events.MoneyDeposited v1 was changed after it was recorded: add another \
          version instead"
        ]
    );
    let forgotten = wrong_with(|lines| lines.retain(|line| line.version == 1));
    assert_eq!(
        forgotten,
        ["millrace.bank_account.events.MoneyDeposited v2 is not recorded yet: run deploy/local/record-schemas"]
    );
    let other = wrong_with(|lines| line(lines, "MoneyDeposited", 1).bytes = "0200".into());
    assert!(other[0].ends_with(r#"are {"amount_minor":1,"reference":null}, and not {"amount_minor":10000,"reference":"salary"} as recorded"#), "{other:?}");
    let short = wrong_with(|lines| line(lines, "MoneyDeposited", 1).bytes.truncate(8));
    assert_eq!(short.len(), 1, "{short:?}");
    let long = wrong_with(|lines| line(lines, "MoneyDeposited", 1).bytes.push_str("00"));
    assert!(long[0].contains("not its struct"), "{long:?}");
}

#[test]
#[should_panic(
    expected = "millrace.bank_account.events.AccountOpened v1 is recorded, and not listed in records! any more"
)]
fn g12_a_recorded_type_is_never_dropped() {
    let mut folder = Folder::open(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src/domain/bank_account/schemas")));
    folder.record = false;
    folder.hold::<bank_account::Command>(|_| None);
    folder.finish();
}
