package muster

import (
	"errors"
	"fmt"
)

// An ErrorKind is the stable code of an error that crosses the network or
// decides an exit code. People read the message, programs the kind.
type ErrorKind string

// The kinds of errors.
const (
	Invalid      ErrorKind = "invalid"       // the input is wrong; sending it again will not help
	Denied       ErrorKind = "denied"        // signature, rights or policy said no
	NotFound     ErrorKind = "not_found"     // no such node, command or method
	Conflict     ErrorKind = "conflict"      // it exists already, or is in another state
	Full         ErrorKind = "full"          // a stated limit is reached; nothing was dropped to make room
	Unavailable  ErrorKind = "unavailable"   // the other side cannot be reached now; trying again may help
	TimedOut     ErrorKind = "timed_out"     // it did not finish in the time that it was given
	Corrupt      ErrorKind = "corrupt"       // stored data cannot be read
	Failed       ErrorKind = "failed"        // the method ran and reported failure
	Interrupted  ErrorKind = "interrupted"   // it was stopped before it ended
	Internal     ErrorKind = "internal"      // a defect of muster
	Unsupported  ErrorKind = "unsupported"   // known, but not possible on this machine
	NothingFound ErrorKind = "nothing_found" // a selector matched no node
)

// An Error has a stable kind, a message for a person, and optionally a hint
// that says what to try. It travels as JSON.
type Error struct {
	Kind    ErrorKind `json:"kind"`
	Message string    `json:"message"`
	Hint    string    `json:"hint,omitempty"`
	cause   error
}

// Error returns the message without the hint.
func (e *Error) Error() string { return e.Message }

// Unwrap returns the error that caused this one. It does not travel.
func (e *Error) Unwrap() error { return e.cause }

// WithHint returns a copy of the error which says what to try.
func (e *Error) WithHint(format string, args ...any) *Error {
	c := *e
	c.Hint = fmt.Sprintf(format, args...)
	return &c
}

// Errorf makes an Error. Each %w verb keeps its operand for errors.Is and As.
func Errorf(kind ErrorKind, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	cause := errors.Unwrap(err)
	if _, several := err.(interface{ Unwrap() []error }); several {
		cause = err
	}
	return &Error{Kind: kind, Message: err.Error(), cause: cause}
}

// KindOf returns the kind of the first Error in err's chain, Internal when
// there is none, and "" for nil.
func KindOf(err error) ErrorKind {
	if err == nil {
		return ""
	}
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Kind
	}
	return Internal
}

// AsError returns err as an Error: the first in its chain with the full
// message, or a new one of the given kind.
func AsError(kind ErrorKind, err error) *Error {
	if err == nil {
		return nil
	}
	if e, ok := errors.AsType[*Error](err); ok {
		return &Error{Kind: e.Kind, Message: err.Error(), Hint: e.Hint, cause: err}
	}
	return &Error{Kind: kind, Message: err.Error(), cause: err}
}
