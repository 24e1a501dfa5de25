package facts_test

import (
	"encoding/json"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/facts"
)

func TestGatherMachine(t *testing.T) {
	got, errs := facts.Gather(t.Context(), facts.Options{})
	for _, err := range errs {
		t.Error(err)
	}
	checkTypes(t, "", got)
	if runtime.GOOS != "linux" {
		t.Skip("what is known depends on the system")
	}
	for path, check := range map[string]func(any) bool{
		"os.kernel":           isText,
		"os.arch":             isText,
		"os.family":           isText,
		"host.name":           isText,
		"host.boot_id":        isText,
		"host.virtualization": isText,
		"host.boot_time": func(v any) bool {
			at, err := time.Parse(time.RFC3339, v.(string))
			return err == nil && at.Year() > 2000
		},
		"cpu.cores":          isPositive,
		"memory.total_bytes": isPositive,
		"memory.swap_bytes":  func(v any) bool { n, ok := v.(int64); return ok && n >= 0 },
		"go.os":              func(v any) bool { return v == "linux" },
		"go.arch":            func(v any) bool { return v == runtime.GOARCH },
		"disks":              isListOf("mount", "device", "fs"),
		"network.interfaces": isListOf("name", "addresses"),
		"network.addresses":  isAddresses,
	} {
		if v := at(got, path); v == nil || !check(v) {
			t.Errorf("%s: got %#v", path, v)
		}
	}
}

func at(tree any, path string) any {
	for key := range strings.SplitSeq(path, ".") {
		m, _ := tree.(map[string]any)
		tree = m[key]
	}
	return tree
}

func isText(v any) bool     { s, ok := v.(string); return ok && s != "" }
func isPositive(v any) bool { n, ok := v.(int64); return ok && n > 0 }

func isListOf(keys ...string) func(any) bool {
	return func(v any) bool {
		list, ok := v.([]any)
		for _, element := range list {
			for _, key := range keys {
				m, isMap := element.(map[string]any)
				ok = ok && isMap && m[key] != nil
			}
		}
		return ok
	}
}

func isAddresses(v any) bool {
	list, ok := v.([]any)
	for _, element := range list {
		text, _ := element.(string)
		address, err := netip.ParseAddr(text)
		ok = ok && err == nil && address.IsGlobalUnicast()
	}
	return ok
}

// checkTypes checks the promise about types, and that encoding is lossless.
func checkTypes(t *testing.T, path string, v any) {
	t.Helper()
	switch v := v.(type) {
	case nil, bool, string, int64, float64:
	case map[string]any:
		for key, inner := range v {
			checkTypes(t, path+"."+key, inner)
		}
	case []any:
		for _, inner := range v {
			checkTypes(t, path+"[]", inner)
		}
	default:
		t.Errorf("%s has type %T", path, v)
	}
	if path != "" {
		return
	}
	if encoded, err := json.Marshal(v); err != nil || len(encoded) > facts.MaxSize {
		t.Errorf("got %d bytes, %v", len(encoded), err)
	}
}

// checkErrors checks that there is one error for each of want: its kind, and
// parts of its message.
func checkErrors(t *testing.T, got []error, kind muster.ErrorKind, want ...string) {
	t.Helper()
	if len(got) != 1 {
		t.Errorf("got %d errors %v, want one of kind %q containing %q", len(got), got, kind, want)
		return
	}
	if muster.KindOf(got[0]) != kind {
		t.Errorf("got kind %q (%v), want %q", muster.KindOf(got[0]), got[0], kind)
	}
	for _, part := range want {
		if !strings.Contains(got[0].Error(), part) {
			t.Errorf("got %v, want it to contain %q", got[0], part)
		}
	}
}
