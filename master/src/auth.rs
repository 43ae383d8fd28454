//! Who may call what needs the cluster's secret.

use arborcast_proto::wire::Secret;
use tonic::metadata::MetadataMap;
use tonic::{Request, Status};

use crate::secure::Guest;

/// The metadata that carries the secret.
const HEADER: &str = "authorization";

/// The one scheme that is known. By HTTP's rules, upper and lower case are the same in it.
const SCHEME: &str = "bearer";

/// Compares what callers present with the cluster's secret.
#[derive(Debug, Clone)]
pub(crate) struct Authorizer {
    secret: Secret,
}

impl Authorizer {
    /// Knows the secret.
    pub(crate) fn new(secret: Secret) -> Self {
        Self { secret }
    }

    /// Lets a call of a node pass: with the secret, and over TLS with a certificate of the tree's authority too, where this
    /// master has that authority.
    ///
    /// # Errors
    /// `UNAUTHENTICATED`, with what to do.
    pub(crate) fn check_node<T>(&self, request: &Request<T>) -> Result<(), Status> {
        self.check(request.metadata())?;
        if request.extensions().get::<Guest>().is_some_and(|guest| guest.lacks_certificate) {
            return Err(Status::unauthenticated(
                "this call needs a certificate of this tree's authority: give the node --tls-cert and --tls-key",
            ));
        }
        Ok(())
    }

    /// Lets the call pass if its metadata has the secret. The comparison takes the same time wherever the first
    /// difference is.
    ///
    /// # Errors
    /// `UNAUTHENTICATED`, with what to do.
    pub(crate) fn check(&self, metadata: &MetadataMap) -> Result<(), Status> {
        let mut values = metadata.get_all(HEADER).iter();
        let (Some(value), None) = (values.next(), values.next()) else {
            return Err(Status::unauthenticated(
                "this call needs the cluster's secret, once, as metadata `authorization: Bearer SECRET`",
            ));
        };
        match bearer(value.as_encoded_bytes()) {
            Some(presented) if presented == self.secret => Ok(()),
            Some(_) => Err(Status::unauthenticated("the secret is not that of this cluster")),
            None => Err(Status::unauthenticated("the metadata `authorization` is not of the form `Bearer SECRET`")),
        }
    }
}

fn bearer(value: &[u8]) -> Option<Secret> {
    let (scheme, secret) = std::str::from_utf8(value).ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case(SCHEME).then(|| Secret::from(secret))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(values: &[&str]) -> Result<(), String> {
        let mut metadata = MetadataMap::new();
        for value in values {
            metadata.append(HEADER, value.as_bytes().try_into().unwrap());
        }
        Authorizer::new("s3cret".into()).check(&metadata).map_err(|status| {
            assert_eq!(status.code(), tonic::Code::Unauthenticated);
            assert!(!status.message().contains("s3cret"), "{status:?}");
            status.message().to_owned()
        })
    }

    #[test]
    fn only_the_secret_passes() {
        assert_eq!(check(&["Bearer s3cret"]), Ok(()));
        assert_eq!(check(&["bearer s3cret"]), Ok(()));
        for wrong in ["Bearer s3cre", "Bearer s3crett", "Bearer S3CRET", "Bearer ", "Bearer  s3cret", "Bearer s3cret "]
        {
            assert!(check(&[wrong]).unwrap_err().contains("not that of this cluster"), "{wrong}");
        }
        for malformed in ["s3cret", "Basic s3cret", "Bearer", ""] {
            assert!(check(&[malformed]).unwrap_err().contains("form"), "{malformed}");
        }
    }

    #[test]
    fn it_is_given_exactly_once() {
        assert!(check(&[]).unwrap_err().contains("Bearer SECRET"));
        assert!(check(&["Bearer s3cret", "Bearer s3cret"]).is_err(), "which of the two would count?");
    }

    #[test]
    fn a_secret_of_any_letters_passes() {
        let mut metadata = MetadataMap::new();
        metadata.insert(HEADER, "Bearer grün".as_bytes().try_into().unwrap());
        assert!(Authorizer::new("grün".into()).check(&metadata).is_ok());
    }
}
