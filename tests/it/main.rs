//! Black-box tests: the program as its users meet it.

mod cli;
