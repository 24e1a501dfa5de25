// Package enrol lets nodes into a fleet and puts them out again.
//
//	Invite   writes an invitation to the fleet's records and makes a token
//	Join     presents the token, with a key that never leaves the node
//	Service  checks the invitation and signs credentials for the key
//
// The records, each one JSON object:
//
//	invite.<token id>   an invitation, with the hash of its secret
//	node.<node>         what operators say of a node: mailbox, labels, time of invitation
//	remove.<node>       written by an operator: the node is to be put out
//
// The public key with which each node joined is kept in the fleet's folder.
//
// A token is good for one key. The same key may ask again until the token
// expires, so that a lost answer does no harm. After MaxFailures wrong secrets
// the invitation is void. A removal counts for what was written before it: the
// node's credentials are revoked and its open invitations are void, and a new
// invitation lets it in again with a new key.
package enrol
