//! Black-box tests: nodes as processes, applications on their mounts, and the interface of the README.

#[path = "../harness/mod.rs"]
mod harness;

mod attackers;
mod bad_input;
mod bounded_log;
mod capture;
mod cli;
mod damaged_disk;
mod disaster;
mod doctor;
mod documents;
mod exclusive_clients;
mod failover;
mod far_apart;
mod fault;
mod fence;
mod few_descriptors;
mod foreign_writes;
mod founding;
mod full_disk;
mod guarantees;
mod history;
mod import_circles;
mod interrupted_starts;
mod last_close;
mod limits;
mod metrics;
mod mounted_files;
mod multi_node;
mod mutual_tls;
mod names;
mod namespaces;
mod proxy;
mod returning_nodes;
mod security;
mod several_databases;
mod single_node;
mod sql_attackers;
mod sql_cluster;
mod sql_over_http;
mod starting;
mod supervision;
mod tidy;
mod torture_checker;
mod traces;
