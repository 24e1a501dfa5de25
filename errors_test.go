package muster

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
)

// Each operand of a %w verb is found, however many there are.
func TestErrorfWithSeveralCauses(t *testing.T) {
	one, two := errors.New("one"), Errorf(NotFound, "two")
	for format, args := range map[string][]any{"%w": {one}, "%w: %w": {one, two}, "%w, %w and %w": {io.EOF, two, one}} {
		err := Errorf(Full, format, args...)
		for _, cause := range args {
			if !errors.Is(err, cause.(error)) {
				t.Errorf("%q: %v is not in the chain", format, cause)
			}
		}
		if want := fmt.Sprintf(strings.ReplaceAll(format, "%w", "%v"), args...); KindOf(err) != Full || err.Error() != want {
			t.Errorf("%q: %s error %q, want %q", format, KindOf(err), err, want)
		}
	}
	if errors.Is(Errorf(Full, "%v", one), one) {
		t.Error("without a %w verb there is a cause")
	}
}
