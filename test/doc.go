// Package test holds the tests that take the whole program together: agent,
// broker and client in virtual time, and real processes that are killed.
package test
