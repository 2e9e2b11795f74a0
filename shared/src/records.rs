//! Avro records as Rust enums: which records a set holds, in which versions, and how each is read and written.
//!
//! A domain declares its commands and events with [`records!`](crate::records!). Every version of a record that was
//! ever written stays listed with its `.avsc` and the struct of *that* version, which converts into the next one: data is
//! read with the schema it was written with, then upcast step by step. (apache-avro 0.22 panics when it is asked to
//! deserialise into a struct with a reader schema, and reading by the writer's schema is seven times as fast.) A record
//! type that is no longer written stays listed as well, as `retired`: its last version converts into the set.

#[doc(hidden)]
pub use apache_avro;
use apache_avro::{reader::datum::GenericDatumReader, writer::datum::GenericDatumWriter};

/// One record type and all versions of its schema.
#[derive(Debug)]
pub struct RecordType {
    /// Unqualified record name, e.g. `MoneyDeposited`.
    pub name: &'static str,
    /// The `.avsc` texts, oldest first; the last one is what we write.
    pub versions: &'static [&'static str],
    /// It is only read any more, and becomes a value of another type then.
    pub is_retired: bool,
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

    /// Reads the datum of record `index` in version `version` (0 = oldest) and upcasts it to what it is at present.
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
///         retired BalanceChanged { v1::BalanceChanged = "schemas/events/BalanceChanged.v1.avsc" },
///     }
/// }
/// ```
/// Each variant holds the struct of its own name. Of the versions of a record each needs `From` the one before it; of a
/// retired one, the enum needs `From` the last. A type stays at its place in the list, which histories refer to.
#[macro_export]
macro_rules! records {
    (
        $(#[$enum_doc:meta])*
        pub enum $set:ident in $namespace:literal { $($types:tt)+ }
    ) => {
        $crate::records!(@types [ $(#[$enum_doc])* $set $namespace ] [] [] $($types)+);
    };

    // One type after the other goes to the list of all, and those that are written to the enum's variants as well.
    (
        @types $head:tt [$($written:tt)*] [$($all:tt)*]
        $(#[$doc:meta])* retired $record:ident { $( $version:path = $file:literal ),+ $(,)? } $(, $($rest:tt)*)?
    ) => {
        $crate::records!(
            @types $head [$($written)*] [$($all)* { true from $record $( $version = $file ),+ }] $($($rest)*)?
        );
    };
    (
        @types $head:tt [$($written:tt)*] [$($all:tt)*]
        $(#[$doc:meta])* $record:ident { $( $version:path = $file:literal ),+ $(,)? } $(, $($rest:tt)*)?
    ) => {
        $crate::records!(
            @types $head [$($written)* { $(#[$doc])* $record }]
            [$($all)* { false $record $record $( $version = $file ),+ }] $($($rest)*)?
        );
    };
    (
        @types [ $(#[$enum_doc:meta])* $set:ident $namespace:literal ]
        [ $({ $(#[$doc:meta])* $record:ident })+ ]
        [ $({ $is_retired:literal $make:ident $name:ident $( $version:path = $file:literal ),+ })+ ]
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
                    name: stringify!($name),
                    versions: &[ $( include_str!($file) ),+ ],
                    is_retired: $is_retired,
                } ),+
            ];

            fn index(&self) -> usize {
                #[allow(dead_code, reason = "nothing is made of retired ones")]
                #[allow(clippy::enum_variant_names, reason = "they are called what the records are")]
                enum Index { $( $name ),+ }
                match self { $( Self::$record(_) => Index::$record as usize ),+ }
            }

            fn write(
                &self,
                writer: &$crate::records::apache_avro::writer::datum::GenericDatumWriter<'_>,
                out: &mut Vec<u8>,
            ) -> Result<(), $crate::records::apache_avro::Error> {
                match self { $( Self::$record(record) => writer.write_ser(out, record).map(|_| ()) ),+ }
            }

            fn read(
                index: usize,
                version: usize,
                reader: &$crate::records::apache_avro::reader::datum::GenericDatumReader<'_>,
                datum: &mut &[u8],
            ) -> Result<Self, $crate::records::apache_avro::Error> {
                type Read = fn(
                    &$crate::records::apache_avro::reader::datum::GenericDatumReader<'_>,
                    &mut &[u8],
                ) -> Result<$set, $crate::records::apache_avro::Error>;
                const READ: &[&[Read]] = &[ $( $crate::records!(@read $set $make [] $( $version ),+) ),+ ];
                READ[index][version](reader, datum)
            }
        }
    };

    // One function for each version: read it, then step by step what came after it.
    (@read $set:ident $make:ident [$($done:expr,)*] $first:path $(, $next:path)*) => {
        $crate::records!(@read $set $make [$($done,)* |reader, datum| {
            let record: $first = reader.read_deser(datum)?;
            $( let record: $next = record.into(); )*
            Ok($set::$make(record))
        },] $($next),*)
    };
    (@read $set:ident $make:ident [$($done:expr,)*]) => { &[ $($done),* ] };
}
