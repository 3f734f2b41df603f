//! How things are said: metrics, access records, logs.
#![forbid(unsafe_code)]
