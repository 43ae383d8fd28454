//! Admission tickets: a master signs one for a client, and the server that it names checks it without asking back
//! (protocol, Admission).
//!
//! A ticket is a JWT (RFC 7519) with HS256, so that any library for these reads it. Pure: the time comes in.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hkdf::Hkdf;
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use thiserror::Error;

use crate::wire::{Origin, Secret};

/// For how long a ticket is good, in seconds (protocol, B53).
pub const LIFETIME: u64 = 30;

/// How far the clocks of a master and of a server may be apart, in seconds (protocol, B53).
pub const LEEWAY: u64 = 10;

/// Longest ticket that is looked at, in bytes (protocol, B54).
pub const MAX_LENGTH: usize = 1024;

/// Longest id of a master, in bytes.
pub const MAX_ISSUER: usize = 128;

/// What the key is derived for; another use of the cluster's secret has another (protocol, V2).
const PURPOSE: &[u8] = b"arborcast admission ticket HS256 v1";

/// The JOSE header of every ticket.
const HEADER: &str = r#"{"alg":"HS256","typ":"JWT"}"#;

/// What tickets are signed with: everybody has it who knows the cluster's secret, and nobody else.
#[derive(Clone)]
pub struct TicketKey(Hmac<Sha256>);

impl fmt::Debug for TicketKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl TicketKey {
    /// Derives the key from the cluster's secret: HKDF with SHA-256, without a salt.
    pub fn derive(cluster: &Secret) -> Self {
        let mut key = [0; 32];
        let derived = Hkdf::<Sha256>::new(None, cluster.expose().as_bytes()).expand(PURPOSE, &mut key);
        let (Ok(()), Ok(keyed)) = (derived, Hmac::new_from_slice(&key)) else {
            unreachable!("HKDF gives up to 8,160 bytes, and HMAC takes keys of any length")
        };
        Self(keyed)
    }

    fn signature(&self, signed: &str) -> impl AsRef<[u8]> + use<> {
        self.0.clone().chain_update(signed).finalize().into_bytes()
    }

    /// Whether the signature is that of these bytes, in a time that does not tell where it differs.
    fn is_signature(&self, signed: &str, signature: &[u8]) -> bool {
        self.0.clone().chain_update(signed).verify_slice(signature).is_ok()
    }
}

/// What a ticket says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ticket {
    /// The id of the master that gave it; 1 to [`MAX_ISSUER`] bytes.
    pub issuer: Box<str>,
    /// The run of the server where it is good.
    pub audience: Origin,
    /// When it ends to be good, in seconds since 1970.
    pub expires_at: u64,
    /// No other ticket has this number: it admits once.
    pub number: u128,
}

/// Why a ticket is not good. Normal are the first two, where a client is slow or a server has just been started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Error)]
pub enum TicketFault {
    /// It was good once.
    #[error("the ticket has expired: ask a master for another one")]
    Expired,
    /// It is for another server, or for an earlier run of this one.
    #[error("the ticket is for another server")]
    Foreign,
    /// Its signature is not that of this cluster: made up, or by a master that was given another secret.
    #[error("the ticket was not signed with the secret of this tree")]
    Forged,
    /// It is no ticket at all.
    #[error("the ticket can't be read")]
    Malformed,
    /// It would be good for longer than masters make them: one of the two clocks is wrong.
    #[error("the ticket expires too far ahead: the clock of this server or that of the master is wrong")]
    TooFarAhead,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
}

#[derive(Serialize, Deserialize)]
struct Claims {
    iss: Box<str>,
    aud: Origin,
    exp: u64,
    jti: String,
}

impl Ticket {
    /// The ticket as clients carry it.
    pub fn sign(&self, key: &TicketKey) -> Secret {
        let claims = Claims {
            iss: self.issuer.clone(),
            aud: self.audience.clone(),
            exp: self.expires_at,
            jti: format!("{:032x}", self.number),
        };
        // Strings and numbers can always be written.
        let claims = serde_json::to_vec(&claims).unwrap_or_default();
        let mut text = URL_SAFE_NO_PAD.encode(HEADER);
        text.push('.');
        URL_SAFE_NO_PAD.encode_string(claims, &mut text);
        let signature = key.signature(&text);
        text.push('.');
        URL_SAFE_NO_PAD.encode_string(signature, &mut text);
        text.into()
    }

    /// What a ticket says, if it is good at this run of a server at this time, in milliseconds since 1970. That it is used
    /// once only is for the server to see to.
    ///
    /// # Errors
    /// Why it is not good.
    pub fn check(text: &Secret, key: &TicketKey, run: &Origin, now: u64) -> Result<Self, TicketFault> {
        let ticket = Self::read(text.expose(), key)?;
        let now = now / 1000;
        if ticket.audience != *run {
            Err(TicketFault::Foreign)
        } else if now >= ticket.forgotten_at() {
            Err(TicketFault::Expired)
        } else if ticket.expires_at > now.saturating_add(LIFETIME + LEEWAY) {
            Err(TicketFault::TooFarAhead)
        } else {
            Ok(ticket)
        }
    }

    /// From when on nobody takes it any more, in seconds since 1970.
    pub fn forgotten_at(&self) -> u64 {
        self.expires_at.saturating_add(LEEWAY)
    }

    /// Nothing of it is looked at before its signature is found right.
    fn read(text: &str, key: &TicketKey) -> Result<Self, TicketFault> {
        let malformed = TicketFault::Malformed;
        if text.len() > MAX_LENGTH {
            return Err(malformed);
        }
        let (signed, signature) = text.rsplit_once('.').ok_or(malformed)?;
        let (header, claims) = signed.split_once('.').ok_or(malformed)?;
        let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| malformed)?;
        if !key.is_signature(signed, &signature) {
            return Err(TicketFault::Forged);
        }
        let header: Header = decode(header)?;
        let claims: Claims = decode(claims)?;
        let is_well_formed =
            header.alg == "HS256" && (1..=MAX_ISSUER).contains(&claims.iss.len()) && claims.jti.len() == 32;
        let number = u128::from_str_radix(&claims.jti, 16).ok().filter(|_| is_well_formed).ok_or(malformed)?;
        Ok(Self { issuer: claims.iss, audience: claims.aud, expires_at: claims.exp, number })
    }
}

fn decode<T: for<'de> Deserialize<'de>>(part: &str) -> Result<T, TicketFault> {
    let json = URL_SAFE_NO_PAD.decode(part).map_err(|_| TicketFault::Malformed)?;
    serde_json::from_slice(&json).map_err(|_| TicketFault::Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_700_000_000;

    fn key() -> TicketKey {
        TicketKey::derive(&"cluster-secret".into())
    }

    fn run() -> Origin {
        Origin { id: "n1".into(), incarnation: 5 }
    }

    fn ticket() -> Ticket {
        Ticket { issuer: "m1".into(), audience: run(), expires_at: NOW + LIFETIME, number: 0xfeed }
    }

    fn check_at(text: &Secret, seconds: u64) -> Result<Ticket, TicketFault> {
        Ticket::check(text, &key(), &run(), seconds * 1000)
    }

    fn signed_by_hand(header: &str, claims: &str) -> Secret {
        let text = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
        let signature = URL_SAFE_NO_PAD.encode(key().signature(&text));
        format!("{text}.{signature}").into()
    }

    #[test]
    fn a_ticket_is_the_jwt_that_the_protocol_shows() {
        let text = ticket().sign(&key());
        // Made with Python's hmac, hashlib and base64.
        assert_eq!(text.expose(), EXAMPLE);
        assert_eq!(check_at(&EXAMPLE.into(), NOW), Ok(ticket()));
    }

    #[test]
    fn a_ticket_is_good_at_one_run_of_one_server_for_its_time_and_the_leeway() {
        let text = ticket().sign(&key());
        for (seconds, expected) in [
            (NOW, Ok(ticket())),
            (NOW - LEEWAY, Ok(ticket())),
            (NOW + LIFETIME + LEEWAY - 1, Ok(ticket())),
            (NOW + LIFETIME + LEEWAY, Err(TicketFault::Expired)),
            (NOW - LEEWAY - 1, Err(TicketFault::TooFarAhead)),
            (u64::MAX / 1000, Err(TicketFault::Expired)),
        ] {
            assert_eq!(check_at(&text, seconds), expected, "at {seconds}");
        }
        for other in [Origin { incarnation: 4, ..run() }, Origin { id: "n2".into(), ..run() }] {
            assert_eq!(Ticket::check(&text, &key(), &other, NOW * 1000), Err(TicketFault::Foreign));
        }
        let for_ever = Ticket { expires_at: u64::MAX, ..ticket() }.sign(&key());
        assert_eq!(check_at(&for_ever, NOW), Err(TicketFault::TooFarAhead));
    }

    #[test]
    fn a_ticket_of_which_one_character_is_another_one_is_not_good() {
        let text = ticket().sign(&key());
        for at in 0..text.expose().len() {
            let mut bytes = text.expose().as_bytes().to_vec();
            bytes[at] = if bytes[at] == b'A' { b'E' } else { b'A' };
            let other = Secret::from(String::from_utf8(bytes).unwrap());
            let refused = check_at(&other, NOW).unwrap_err();
            assert!(matches!(refused, TicketFault::Forged | TicketFault::Malformed), "{at}: {refused}");
        }
        let other = ticket().sign(&TicketKey::derive(&"cluster-secret2".into()));
        assert_eq!(check_at(&other, NOW), Err(TicketFault::Forged));
    }

    #[test]
    fn what_is_signed_and_no_ticket_is_not_good() {
        let claims = r#"{"iss":"m1","aud":"5/n1","exp":1700000030,"jti":"0000000000000000000000000000feed"}"#;
        assert_eq!(check_at(&signed_by_hand(HEADER, claims), NOW), Ok(ticket()));
        let more = claims.replace('}', r#","iat":1700000000,"nobody":["knows"]}"#);
        assert_eq!(check_at(&signed_by_hand(r#"{"typ":"JWT","alg":"HS256"}"#, &more), NOW), Ok(ticket()));
        for (header, claims) in [
            (r#"{"alg":"none","typ":"JWT"}"#, claims),
            (r#"{"alg":"HS512"}"#, claims),
            ("{}", claims),
            ("", claims),
            (HEADER, "{}"),
            (HEADER, ""),
            (HEADER, &claims.replace("feed", "fee")),
            (HEADER, &claims.replace("feed", "feeg")),
            (HEADER, &claims.replace("m1", "")),
            (HEADER, &claims.replace("m1", &"m".repeat(MAX_ISSUER + 1))),
            (HEADER, &claims.replace("5/n1", "n1")),
            (HEADER, &claims.replace("1700000030", "-1")),
            (HEADER, &claims.replace("1700000030", "1e400")),
        ] {
            assert_eq!(
                check_at(&signed_by_hand(header, claims), NOW),
                Err(TicketFault::Malformed),
                "{header} {claims}"
            );
        }
        for text in ["", ".", "..", "...", "a.b.c", "a.b", &"x.".repeat(MAX_LENGTH), "ä.ö.ü", "e30.e30.=="] {
            assert!(check_at(&text.into(), NOW).is_err(), "{text}");
        }
    }

    #[test]
    fn the_longest_ids_make_a_ticket_that_is_looked_at() {
        let audience = Origin { id: "\"".repeat(crate::wire::relay::MAX_ORIGIN_ID).into(), incarnation: u64::MAX };
        let longest = Ticket { issuer: "m".repeat(MAX_ISSUER).into(), audience: audience.clone(), ..ticket() };
        let text = longest.sign(&key());
        assert!(text.expose().len() <= MAX_LENGTH, "{}", text.expose().len());
        assert_eq!(Ticket::check(&text, &key(), &audience, NOW * 1000), Ok(longest));
    }

    #[test]
    fn a_key_never_shows_itself() {
        assert_eq!(format!("{:?}", key()), "***");
    }

    const EXAMPLE: &str = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.\
        eyJpc3MiOiJtMSIsImF1ZCI6IjUvbjEiLCJleHAiOjE3MDAwMDAwMzAsImp0aSI6IjAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDBmZWVkIn0.\
        zNLyddrmNFM3ciOFl79vo6Rv6XONghIMK5DHW0tGVPo";
}
