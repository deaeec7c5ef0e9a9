//! Real containers on real engines. Each body is one scenario and runs on both containerds.

mod harness;
