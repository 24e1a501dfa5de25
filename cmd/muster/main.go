// Command muster runs commands on machines that you cannot always reach.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/musterfleet/muster/internal/cli"
)

func main() { os.Exit(run()) }

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// The first signal asks for an orderly end. From then on signals do what
	// they do to any program, so that a second one ends it at once.
	context.AfterFunc(ctx, stop)
	// A reader that goes away is an error of the write, and no sudden end.
	// Notify, unlike Ignore, leaves the signal to the programs that are run.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	return cli.Main(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr, os.Getenv)
}
