//! What a user can be asked to do. These names are a stored format: see `schemas/commands`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    docs,
    values::{Address, Country, Email, Line},
};
use crate::{
    domain::{CommandError, Fields},
    records,
};

records! {
    /// A request to change one user.
    pub enum Command in "millrace.user.commands" {
        /// Begin it.
        RegisterUser { RegisterUser = "schemas/commands/RegisterUser.v1.avsc" },
        /// Another name.
        ChangeName { ChangeName = "schemas/commands/ChangeName.v1.avsc" },
        /// Another e-mail address.
        ChangeEmail { ChangeEmail = "schemas/commands/ChangeEmail.v1.avsc" },
        /// Another address.
        ChangeAddress { ChangeAddress = "schemas/commands/ChangeAddress.v1.avsc" },
        /// Suspend it.
        DeactivateUser { DeactivateUser = "schemas/commands/DeactivateUser.v1.avsc" },
        /// Take it up again.
        ReactivateUser { ReactivateUser = "schemas/commands/ReactivateUser.v1.avsc" },
        /// Forget it.
        EraseUser { EraseUser = "schemas/commands/EraseUser.v1.avsc" },
        /// A reservation is decided.
        AnswerClaim { AnswerClaim = "schemas/commands/AnswerClaim.v1.avsc" },
        /// A reservation asks back.
        AskClaim { AskClaim = "schemas/commands/AskClaim.v1.avsc" },
    }
}

/// Registers a user.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RegisterUser {
    /// Given names.
    #[schema(schema_with = docs::line)]
    pub given_name: Line,
    /// Family name.
    #[schema(schema_with = docs::line)]
    pub family_name: Line,
    /// E-mail address.
    #[schema(schema_with = docs::email)]
    pub email: Email,
    /// Where they live.
    #[schema(schema_with = docs::optional_address, required = false)]
    pub address: Option<Address>,
    /// Id of the e-mail's reservation: see [`Aggregate::prepare`](crate::domain::Aggregate::prepare).
    #[serde(skip)]
    pub reservation: Option<String>,
}

/// Changes the name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ChangeName {
    /// Given names.
    #[schema(schema_with = docs::line)]
    pub given_name: Line,
    /// Family name.
    #[schema(schema_with = docs::line)]
    pub family_name: Line,
}

/// Changes the e-mail address.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ChangeEmail {
    /// E-mail address.
    #[schema(schema_with = docs::email)]
    pub email: Email,
    /// As in [`RegisterUser`].
    #[serde(skip)]
    pub reservation: Option<String>,
}

/// Changes the address.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ChangeAddress {
    /// Street and number.
    #[schema(schema_with = docs::line)]
    pub street: Line,
    /// As the country writes it.
    #[schema(schema_with = docs::line)]
    pub postal_code: Line,
    /// City.
    #[schema(schema_with = docs::line)]
    pub city: Line,
    /// Country.
    #[schema(schema_with = docs::country)]
    pub country: Country,
}

/// Suspends the user: nothing but `reactivate` and `erase` is possible.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DeactivateUser {}

/// Takes a user up again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ReactivateUser {}

/// Forgets the user for ever.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct EraseUser {}

/// The reservation is decided that a command of this user waits for. Sent by the user, as their process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AnswerClaim {
    /// Tells this asking from all others.
    pub claim: String,
    /// Whether the address is kept for the user.
    pub is_granted: bool,
}

/// Whether the user has an address that is kept for them. Sent by its reservation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AskClaim {
    /// Id of the reservation.
    pub reservation: String,
    /// Tells this asking from all others.
    pub claim: String,
}

pub(super) fn read(name: &str, mut fields: Fields) -> Result<Command, CommandError> {
    let command = match name {
        "register" => {
            let (given_name, family_name) = (fields.required("given_name"), fields.required("family_name"));
            let (email, address) = (fields.required("email"), fields.optional("address"));
            given_name.zip(family_name).zip(email).map(|((given_name, family_name), email)| {
                Command::RegisterUser(RegisterUser { given_name, family_name, email, address, reservation: None })
            })
        }
        "change-name" => {
            let (given_name, family_name) = (fields.required("given_name"), fields.required("family_name"));
            given_name
                .zip(family_name)
                .map(|(given_name, family_name)| Command::ChangeName(ChangeName { given_name, family_name }))
        }
        "change-email" => {
            fields.required("email").map(|email| Command::ChangeEmail(ChangeEmail { email, reservation: None }))
        }
        "change-address" => {
            let (street, postal_code) = (fields.required("street"), fields.required("postal_code"));
            let (city, country) = (fields.required("city"), fields.required("country"));
            street.zip(postal_code).zip(city.zip(country)).map(|((street, postal_code), (city, country))| {
                Command::ChangeAddress(ChangeAddress { street, postal_code, city, country })
            })
        }
        "deactivate" => Some(Command::DeactivateUser(DeactivateUser {})),
        "reactivate" => Some(Command::ReactivateUser(ReactivateUser {})),
        "erase" => Some(Command::EraseUser(EraseUser {})),
        _ => return Err(CommandError::Unknown),
    };
    fields.finish(command)
}
