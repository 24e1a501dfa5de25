// Package cli is the command line of muster: it reads arguments, calls the SDK
// or package app, and prints. One file holds one noun.
//
//	code := cli.Main(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr, os.Getenv)
//
// Data goes to stdout and everything else to stderr. The exit code tells
// scripts what happened, see the constants. Main has no state of its own: it
// can run many times, and at the same time, in one process. Signals are up to
// the caller, who ends ctx.
package cli
