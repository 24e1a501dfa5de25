// Package aaa says who sent a command, whether it may run, and what is written
// down about it: authentication, authorisation and audit.
//
//	Issuer --signs--> caller's JWT ─┐
//	                                ├─> Identity -> Signer --Sign--> Frame
//	caller's own key ───────────────┘                                  │ (any broker)
//	                                                                   v
//	          AuditLine <- Policy.Decide <- Caller, Command <- Verifier.Verify
//
// A fleet has an issuer. Nodes know only its public key. The issuer signs a
// JWT for each caller that names the caller, its groups and its rights, and the
// caller signs each command with the key that the JWT names. Whoever carries
// the frame (broker, leaf node, file on a stick) can drop it or repeat it, but
// cannot change it or make one. Repeats are told by the command's id, which is
// the business of the node's journal and not of this package.
//
// A caller's key must not also be the key of its NATS credentials: a client
// signs whatever nonce the broker sends, so a hostile broker could have a
// command signed that way. Make one key for each purpose with [NewUserKey].
//
// The package also makes what a broker needs to let nodes and callers in:
// operator, account and user JWTs ([FleetKeys]) and join tokens ([Token]).
//
// It is pure: no I/O, no goroutine, no clock. The time is a parameter
// everywhere. Whoever calls Verify judges the command's deadline and id, stores
// keys with the right permissions, and appends audit lines to a file.
package aaa
