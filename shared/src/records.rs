//! Avro records as Rust enums: which records a set holds, in which versions, and how each is read and written.
//!
//! A domain declares its commands and events with [`records!`](crate::records!). Every version of a record that was
//! ever written stays listed with its `.avsc` and the struct of *that* version, which converts into the present one:
//! data is read with the schema it was written with, then upcast. (apache-avro 0.22 panics when it is asked to
//! deserialise into a struct with a reader schema, and reading by the writer's schema is seven times as fast.)

use apache_avro::{reader::datum::GenericDatumReader, writer::datum::GenericDatumWriter};

/// One record type and all versions of its schema.
#[derive(Debug)]
pub struct RecordType {
    /// Unqualified record name, e.g. `MoneyDeposited`.
    pub name: &'static str,
    /// The `.avsc` texts, oldest first; the last one is what we write.
    pub versions: &'static [&'static str],
}

/// A closed set of Avro records: the commands or the events of a domain.
pub trait Records: Sized + Send + 'static {
    /// Avro namespace of all records in the set, e.g. `millrace.bank_account.events`.
    const NAMESPACE: &'static str;
    /// The record types; [`Records::index`] refers to this order.
    const TYPES: &'static [RecordType];

    /// Which of [`Records::TYPES`] this value is.
    fn index(&self) -> usize;

    /// Appends the Avro datum (no wire-format prefix) to `out`.
    fn write(&self, writer: &GenericDatumWriter<'_>, out: &mut Vec<u8>) -> Result<(), apache_avro::Error>;

    /// Reads the datum of record `index` in version `version` (0 = oldest) and upcasts it to the present struct.
    fn read(
        index: usize,
        version: usize,
        reader: &GenericDatumReader<'_>,
        datum: &mut &[u8],
    ) -> Result<Self, apache_avro::Error>;

    /// Unqualified name of this value's record.
    fn name(&self) -> &'static str {
        Self::TYPES[self.index()].name
    }
}

/// Declares an enum of Avro records and implements [`Records`](crate::records::Records) for it.
///
/// ```ignore
/// records! {
///     /// What happened to a bank account.
///     pub enum Event in "millrace.bank_account.events" {
///         /// Money was paid in.
///         MoneyDeposited {
///             v1::MoneyDeposited = "schemas/events/MoneyDeposited.v1.avsc",
///             MoneyDeposited = "schemas/events/MoneyDeposited.v2.avsc",
///         },
///     }
/// }
/// ```
/// Each variant holds the struct of its own name; older versions need `From<Old> for Present`.
#[macro_export]
macro_rules! records {
    (
        $(#[$enum_doc:meta])*
        pub enum $set:ident in $namespace:literal {
            $(
                $(#[$doc:meta])*
                $record:ident { $( $version:path = $file:literal ),+ $(,)? }
            ),+ $(,)?
        }
    ) => {
        $(#[$enum_doc])*
        #[derive(Clone, Debug, PartialEq, ::serde::Serialize)]
        #[serde(untagged)]
        pub enum $set {
            $( $(#[$doc])* $record($record) ),+
        }

        impl $crate::records::Records for $set {
            const NAMESPACE: &'static str = $namespace;
            const TYPES: &'static [$crate::records::RecordType] = &[
                $( $crate::records::RecordType {
                    name: stringify!($record),
                    versions: &[ $( include_str!($file) ),+ ],
                } ),+
            ];

            fn index(&self) -> usize {
                enum Index { $( $record ),+ }
                match self { $( Self::$record(_) => Index::$record as usize ),+ }
            }

            fn write(
                &self,
                writer: &::apache_avro::writer::datum::GenericDatumWriter<'_>,
                out: &mut Vec<u8>,
            ) -> Result<(), ::apache_avro::Error> {
                match self { $( Self::$record(record) => writer.write_ser(out, record).map(|_| ()) ),+ }
            }

            fn read(
                index: usize,
                version: usize,
                reader: &::apache_avro::reader::datum::GenericDatumReader<'_>,
                datum: &mut &[u8],
            ) -> Result<Self, ::apache_avro::Error> {
                type Read = fn(
                    &::apache_avro::reader::datum::GenericDatumReader<'_>,
                    &mut &[u8],
                ) -> Result<$set, ::apache_avro::Error>;
                const READ: &[&[Read]] = &[
                    $( &[ $( |reader, datum| {
                        let record: $version = reader.read_deser(datum)?;
                        Ok($set::$record(record.into()))
                    } ),+ ] ),+
                ];
                READ[index][version](reader, datum)
            }
        }
    };
}
