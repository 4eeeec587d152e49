use super::{NodeError, NodeIdentity};
use crate::config::Settings;
use crate::types::Role;

/// What a node does about its cluster when it starts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum StartMode {
    /// Founds a new cluster, or ends the founding that was interrupted.
    Found,
    /// Founds a new cluster together with others that are started alike, or joins the one that they have.
    Meet,
    /// Goes on as the voter it was.
    Resume,
    /// Becomes a voter of the cluster that the nodes of `--join` are in.
    Join,
    /// Follows the nodes of `--join`.
    Follow,
}

impl std::fmt::Display for StartMode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            StartMode::Found => "founds a new cluster",
            StartMode::Meet => "founds a new cluster with others, or joins theirs",
            StartMode::Resume => "goes on as the voter it was",
            StartMode::Join => "becomes a voter of the cluster of --join",
            StartMode::Follow => "follows the cluster of --join",
        })
    }
}

impl StartMode {
    /// The place of a node with this identity under these settings.
    ///
    /// # Errors
    /// Where the two contradict each other; the text names the remedy.
    pub(super) fn of(settings: &Settings, identity: &NodeIdentity) -> Result<Self, NodeError> {
        let refuse = |why: String| Err(NodeError::Cluster(why));
        let data = settings.data.display();
        // A replica may become a voter: what it has is kept, and completed by difference.
        let promoted =
            (identity.role, settings.role) == (Role::Replica, Role::Voter) && !settings.join.is_empty();
        if identity.role != settings.role && !promoted {
            return refuse(format!(
                "data directory {data} belongs to a {}: give --role {}, or an empty --data",
                identity.role, identity.role
            ));
        }
        let belongs = identity.cluster.is_some() && !identity.founding;
        match settings.role {
            // It goes on with whom it followed.
            Role::Replica if settings.join.is_empty() && identity.follows.is_empty() => {
                refuse("a replica needs a node to follow: give --join HOST:PORT of one of the cluster".into())
            }
            Role::Replica => Ok(StartMode::Follow),
            Role::Voter if promoted => Ok(StartMode::Join),
            // A cluster is founded once; a start with the same settings finds it there.
            Role::Voter if belongs => Ok(StartMode::Resume),
            Role::Voter if settings.bootstrap => Ok(StartMode::Found),
            Role::Voter if settings.bootstrap_expect == 1 => Ok(StartMode::Found),
            Role::Voter if settings.bootstrap_expect > 1 => Ok(StartMode::Meet),
            Role::Voter if identity.founding => refuse(
                "founding the cluster was interrupted: start once more with --bootstrap or --bootstrap-expect"
                    .into(),
            ),
            Role::Voter if settings.join.is_empty() => refuse(format!(
                "data directory {data} belongs to no cluster: give --bootstrap to found one, --join HOST:PORT to join one, or both --bootstrap-expect N and --join on all of N new nodes"
            )),
            Role::Voter => Ok(StartMode::Join),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Partial;

    fn settings(role: &str, bootstrap: bool, join: bool) -> Settings {
        let partial = Partial {
            mount: Some("/m".into()),
            data: Some("/d".into()),
            role: Some(role.into()),
            bootstrap: Some(bootstrap),
            join: join.then(|| vec!["h:1".parse().unwrap()]),
            ..Partial::default()
        };
        Settings::resolve(partial, "n1").unwrap()
    }

    fn identity(role: Role, cluster: Option<&str>, founding: bool) -> NodeIdentity {
        let cluster = cluster.map(ToOwned::to_owned);
        NodeIdentity { cluster, founding, ..NodeIdentity::draw("n1".parse().unwrap(), role).unwrap() }
    }

    #[test]
    fn a_cluster_is_founded_once_and_resumed_without_being_asked_to() {
        let found = settings("voter", true, false);
        let plain = settings("voter", false, false);
        let new = identity(Role::Voter, None, false);
        let half = identity(Role::Voter, Some("c"), true);
        let member = identity(Role::Voter, Some("c"), false);
        assert_eq!(StartMode::of(&found, &new).unwrap(), StartMode::Found);
        assert_eq!(StartMode::of(&found, &half).unwrap(), StartMode::Found);
        assert_eq!(StartMode::of(&plain, &member).unwrap(), StartMode::Resume);
        let join = settings("voter", false, true);
        assert_eq!(StartMode::of(&join, &new).unwrap(), StartMode::Join);
        assert_eq!(StartMode::of(&join, &member).unwrap(), StartMode::Resume);
        let replica = identity(Role::Replica, Some("c"), false);
        assert_eq!(StartMode::of(&join, &replica).unwrap(), StartMode::Join);
        assert_eq!(StartMode::of(&found, &member).unwrap(), StartMode::Resume);
        for (settings, identity, remedy) in [(&plain, &half, "once more"), (&plain, &new, "--bootstrap")] {
            let refusal = StartMode::of(settings, identity).unwrap_err().to_string();
            assert!(refusal.contains(remedy), "{refusal}");
        }
    }

    #[test]
    fn expected_voters_meet_until_they_have_a_cluster() {
        let meeting = Settings { bootstrap_expect: 3, ..settings("voter", false, true) };
        let mode = |identity| StartMode::of(&meeting, &identity).unwrap();
        assert_eq!(mode(identity(Role::Voter, None, false)), StartMode::Meet);
        assert_eq!(mode(identity(Role::Voter, Some("c"), true)), StartMode::Meet);
        assert_eq!(mode(identity(Role::Voter, Some("c"), false)), StartMode::Resume);
        let alone = Settings { bootstrap_expect: 1, ..settings("voter", false, false) };
        let new = identity(Role::Voter, None, false);
        assert_eq!(StartMode::of(&alone, &new).unwrap(), StartMode::Found);
        let follows = Settings { bootstrap_expect: 3, ..settings("replica", false, true) };
        let replica = identity(Role::Replica, None, false);
        assert_eq!(StartMode::of(&follows, &replica).unwrap(), StartMode::Follow);
    }

    #[test]
    fn a_replica_needs_somebody_to_follow_and_keeps_its_role() {
        let new = identity(Role::Replica, None, false);
        assert_eq!(StartMode::of(&settings("replica", false, true), &new).unwrap(), StartMode::Follow);
        let refusal = StartMode::of(&settings("replica", false, false), &new).unwrap_err().to_string();
        assert!(refusal.contains("--join"), "{refusal}");
        let followed = NodeIdentity { follows: vec!["h:1".into()], ..new.clone() };
        assert_eq!(StartMode::of(&settings("replica", false, false), &followed).unwrap(), StartMode::Follow);
        let refusal = StartMode::of(&settings("voter", true, false), &new).unwrap_err().to_string();
        assert!(refusal.contains("--role replica"), "{refusal}");
    }
}
