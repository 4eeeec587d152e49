//! Targets for [`crate::fuzz`]: what is asked of the cluster as a whole.

use prost::Message;

use super::{member_from_wire, wire};

/// Any of the messages, by the first byte.
pub fn message(data: &[u8]) {
    let Some((kind, data)) = data.split_first() else { return };
    match kind % 5 {
        0 => drop(wire::Member::decode(data).map(member_from_wire)),
        1 => {
            let Ok(answer) = wire::MembersResponse::decode(data) else { return };
            answer.members.into_iter().for_each(|member| drop(member_from_wire(member)));
        }
        2 => drop(wire::JoinRequest::decode(data)),
        3 => drop(wire::ChangeMemberRequest::decode(data)),
        _ => drop((wire::HandoffRequest::decode(data), wire::NewestResponse::decode(data))),
    }
}

/// Valid messages.
pub fn messages() -> Vec<Vec<u8>> {
    let member =
        wire::Member { name: "n1".into(), addr: "10.0.0.1:1".into(), lag_ms: Some(3), ..Default::default() };
    let answer = wire::MembersResponse { members: vec![member.clone(), member.clone()] };
    vec![[&[0], &member.encode_to_vec()[..]].concat(), [&[1], &answer.encode_to_vec()[..]].concat()]
}
