package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/filter"
)

// The exit codes, a promise to scripts.
const (
	ExitOK          = 0
	ExitError       = 1
	ExitUsage       = 2   // the command line is wrong
	ExitFailed      = 3   // some nodes failed
	ExitNothing     = 4   // nothing matched
	ExitPending     = 5   // pending, expired or timed out
	ExitDenied      = 6   // by signature, rights or policy
	ExitInterrupted = 130 // by a signal
)

// A usageError says what is wrong with the command line.
type usageError struct {
	err  error
	hint string
}

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

// usagef makes a usageError whose hint is the help of cmd, if there is one.
func usagef(cmd *cobra.Command, format string, args ...any) *usageError {
	e := &usageError{err: fmt.Errorf(format, args...)}
	if cmd != nil {
		e.hint = fmt.Sprintf("see '%s --help'", cmd.CommandPath())
	}
	return e
}

// usage makes err an error of usage and keeps its hint.
func usage(err error) error {
	if err == nil {
		return nil
	}
	return &usageError{err: err}
}

// An exitError ends the program with a code after everything was said.
type exitError int

func (e exitError) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

func isExit(err error) bool {
	_, ok := errors.AsType[exitError](err)
	return ok
}

// exit returns an error for a code, nil for ExitOK.
func exit(code int) error {
	if code == ExitOK {
		return nil
	}
	return exitError(code)
}

func exitCode(err error) int {
	if e, ok := errors.AsType[exitError](err); ok {
		return int(e)
	}
	if _, ok := errors.AsType[*usageError](err); ok {
		return ExitUsage
	}
	if _, ok := errors.AsType[*filter.SyntaxError](err); ok {
		return ExitUsage
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return ExitPending
	}
	return kindCode(muster.KindOf(err))
}

func kindCode(k muster.ErrorKind) int {
	switch k {
	case muster.NothingFound:
		return ExitNothing
	case muster.Denied:
		return ExitDenied
	case muster.TimedOut:
		return ExitPending
	}
	return ExitError
}

// printError says what happened, then what to try.
func (p *program) printError(err error) {
	if isExit(err) {
		return
	}
	p.say("%s %s", p.errTerm.paint(red, "error:"), clean(message(err)))
	if e, ok := errors.AsType[*filter.SyntaxError](err); ok {
		for line := range strings.SplitSeq(strings.TrimRight(e.Caret(), "\n"), "\n") {
			fmt.Fprintf(p.stderr, "  %s\n", line) // columns matter
		}
	}
	if hint := hintOf(err); hint != "" {
		p.say("%s %s", p.errTerm.paint(cyan, "hint:"), clean(hint))
	}
}

func message(err error) string {
	if errors.Is(err, context.DeadlineExceeded) && muster.KindOf(err) == muster.Internal {
		return "no answer from the broker within " + patience.String() + ": " + err.Error()
	}
	return err.Error()
}

func hintOf(err error) string {
	if e, ok := errors.AsType[*usageError](err); ok && e.hint != "" {
		return e.hint
	}
	if e, ok := errors.AsType[*muster.Error](err); ok && e.Hint != "" {
		return e.Hint
	}
	switch _, syntax := errors.AsType[*filter.SyntaxError](err); {
	case syntax:
		return "selectors are explained in 'muster --help'"
	case errors.Is(err, context.DeadlineExceeded), muster.KindOf(err) == muster.Unavailable:
		return "is the broker running? 'muster doctor' checks the way to it"
	case muster.KindOf(err) == muster.NothingFound:
		return "'muster node ls' lists all nodes"
	}
	return ""
}
