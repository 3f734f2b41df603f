//! Who we are: SVIDs and rustls configurations.
#![forbid(unsafe_code)]
