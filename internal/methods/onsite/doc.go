// Package onsite has the methods that members of an Order execute: what is
// needed to look at a machine and to repair it when no broker is there.
//
//	status   what the machine and its agent are doing
//	facts    what is known of the machine
//	logs     the last lines of a systemd unit's journal
//	service  status, start, stop, restart or reload of a systemd unit
//	broker   show or replace the addresses that muster's agent dials
//	script   a program with arguments, or a script for the shell
//	get      a piece of a file
//	put      a piece of a file, which appears when it is whole
//
// Arguments and results are CBOR arrays with a fixed number of elements, of
// which the first is the version, 0. They are encoded by each type's Encode and
// read by a function for each type. An Answer is around every result.
//
// Whoever may call these methods is root as far as the machine goes: see script.
// A Host can be told to permit fewer.
package onsite
