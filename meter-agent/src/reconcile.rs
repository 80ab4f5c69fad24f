//! What is, what should be, and the steps from one to the other.
