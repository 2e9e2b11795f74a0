use apache_avro::Schema;
use proptest::prelude::*;
use serde_json::json;

use super::*;

const KEYS: &str = "b:AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=\na:AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=,";

fn sealed(value: &str, key: &DataKey, place: &str) -> Personal<String> {
    let mut field = Personal::Open(value.to_owned());
    field.seal(Some(&key.into()), place).unwrap();
    field
}

#[test]
fn a_field_opens_with_its_key_at_its_place_only() {
    let (key, other) = (DataKey::generate(), DataKey::generate());
    let open = |mut field: Personal<String>, key: Option<&DataKey>, place: &str| {
        field.open(key.map(Lock::from).as_ref(), place).map(|()| field)
    };
    let field = || sealed("Ada", &key, "user/1");
    assert_eq!(open(field(), Some(&key), "user/1"), Ok(Personal::Open("Ada".into())));
    assert_eq!(open(field(), None, "user/1"), Ok(Personal::Erased), "its key was destroyed");
    assert_eq!(open(field(), Some(&other), "user/1"), Ok(Personal::Erased), "a key that was made later");
    assert_eq!(open(field(), Some(&key), "user/2"), Err(Error::NotOurs));
    assert_ne!(field(), field(), "nonces are not used twice");
    assert_eq!(Personal::Open(1).seal(None, "user/1"), Err(Error::NoKey));
}

proptest! {
    #[test]
    fn g13_a_field_that_was_changed_does_not_open(at in any::<prop::sample::Index>(), bit in 0..8_u8) {
        let key = DataKey::generate();
        let Personal::Sealed(mut bytes) = sealed("Ada", &key, "user/1") else { unreachable!() };
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        let mut field = Personal::<String>::Sealed(bytes);
        // A mark that was changed is that of another key.
        let expected = if (1..5).contains(&at) { Ok(()) } else { Err(Error::NotOurs) };
        prop_assert_eq!(field.open(Some(&Lock::from(&key)), "user/1"), expected);
        prop_assert_eq!(field.get(), None);
    }

    #[test]
    fn g13_any_bytes_are_no_field_and_no_key(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
        let mut field = Personal::<String>::Sealed(bytes.clone());
        prop_assert!(field.open(Some(&Lock::from(&DataKey::generate())), "user/1").is_err() || field == Personal::Erased);
        let record = KeyRecord::WrappedKey(WrappedKey { master: "a".into(), wrapped: bytes });
        prop_assert!(MasterKeys::parse(KEYS).unwrap().unwrap(&record, "user/1").is_err());
    }
}

#[test]
fn what_is_open_is_never_written_and_json_tells_what_is_known() {
    let schema = Schema::parse_str(r#""bytes""#).unwrap();
    let writer =
        apache_avro::writer::datum::GenericDatumWriter::builder(&schema).human_readable(false).build().unwrap();
    let write = |field: &Personal<String>| {
        let mut bytes = Vec::new();
        writer.write_ser(&mut bytes, field).map(|_| bytes)
    };
    let error = write(&Personal::Open("Ada".into())).unwrap_err().to_string();
    assert!(error.contains("sealed before") && !error.contains("Ada"), "{error}");
    assert_eq!(write(&Personal::Erased).unwrap(), [0]);
    let reader =
        apache_avro::reader::datum::GenericDatumReader::builder(&schema).human_readable(false).build().unwrap();
    for field in [Personal::Erased, sealed("Ada", &DataKey::generate(), "user/1")] {
        let read: Personal<String> = reader.read_deser(&mut write(&field).unwrap().as_slice()).unwrap();
        assert_eq!(read, field);
        assert_eq!(serde_json::to_value(&field).unwrap(), json!(null));
    }
    let open = Personal::Open("Ada");
    assert_eq!(serde_json::to_value(&open).unwrap(), json!("Ada"));
    assert_eq!(format!("{open:?}"), "Open(…)");
}

#[test]
fn master_keys_are_rotated() {
    let (old, both) = (MasterKeys::parse(&KEYS[KEYS.find('a').unwrap()..]).unwrap(), MasterKeys::parse(KEYS).unwrap());
    let (key, place) = (DataKey::generate(), "user/1");
    let wrapped = old.wrap(&key, place);
    assert_eq!(both.unwrap(&wrapped, place), Ok(key.clone()));
    assert!(both.is_outdated(&wrapped));
    let again = both.wrap(&key, place);
    assert!(!both.is_outdated(&again));
    assert_eq!(both.unwrap(&again, place), Ok(key));
    assert_eq!(old.unwrap(&again, place), Err(KeyError::Missing("b".into())));
    assert_eq!(both.unwrap(&again, "user/2"), Err(KeyError::Refused("b".into())), "a key belongs to its person");
    assert_eq!(format!("{both:?}"), r#"["b", "a"]"#);
}

#[test]
fn malformed_master_keys_are_told_without_being_quoted() {
    for (text, says) in [
        ("", "at least"),
        ("c2VjcmV0", "<name>"),
        (":AQEB", "name"),
        ("a:c2VjcmV0", "key a is not 32 bytes"),
        (&KEYS.replace("a:", "b:"), "twice"),
    ] {
        let error = MasterKeys::parse(text).unwrap_err();
        assert!(error.contains(says) && !error.contains("c2VjcmV0"), "{text}: {error}");
    }
}
