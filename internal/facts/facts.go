// Package facts gathers what is known of this machine, for nodes to be chosen
// and configured by:
//
//	all, errs := facts.Gather(ctx, facts.Options{Dir: "/etc/muster/facts.d"})
//
// Facts of the machine itself, as far as it tells them:
//
//	os      name, id, version, family, kernel, arch
//	host    name, boot_id, boot_time (RFC 3339), virtualization ("none", "kvm", "docker", ...)
//	cpu     model, cores (as many as run threads at once)
//	memory  total_bytes, swap_bytes
//	disks   list of mount, device, fs, total_bytes; without pseudo file systems
//	network interfaces (list of name, mac, addresses; without loopback),
//	        addresses (all that are valid beyond their link)
//	go      os, arch (that this program was built for)
//
// Only what stays the same for hours is a fact: a number that differs at
// every look, such as free memory, would make every node look changed.
//
// Facts from a folder are added, file by file in the order of their names.
// Each file holds a map, whose keys replace those gathered before:
//
//	*.json          an object
//	*.yaml, *.yml   a mapping
//	*.txt           lines of key=value; values are strings
//	executables     print an object or lines of key=value
//
// Hidden files and folders are skipped. Executables run with a time limit and
// a small environment, and only if nobody but root and the user of this
// process could have changed them. A file that cannot be used is an error
// that names it, and does not keep the others from being used.
//
// The caller decides when to gather and what to do with the errors.
package facts

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"time"

	"github.com/musterfleet/muster"
)

// Limits.
const (
	MaxSize        = 256 << 10 // bytes of all facts together as JSON
	MaxFile        = 1 << 20   // bytes of a file, or printed by an executable
	DefaultTimeout = 10 * time.Second
)

// Options say what to gather beyond the facts of the machine itself.
type Options struct {
	// Dir is the folder of facts. None are read when it is empty or does not
	// exist.
	Dir string
	// Timeout bounds the run of each executable in Dir; 0 is DefaultTimeout.
	Timeout time.Duration
}

// Gather returns the facts of this machine, and an error for every part of
// them that could not be gathered. The values are maps of string to any, lists
// of any, strings, float64, int64, booleans and nil, and together have at most
// MaxSize bytes as JSON. When ctx ends, what was gathered until then is
// returned, with an error.
func Gather(ctx context.Context, o Options) (map[string]any, []error) {
	if o.Timeout <= 0 {
		o.Timeout = DefaultTimeout
	}
	g := &gatherer{facts: map[string]any{}}
	g.machine(ctx)
	if o.Dir != "" {
		g.folder(ctx, o)
	}
	return g.facts, g.errs
}

// A gatherer collects facts and errors.
type gatherer struct {
	facts map[string]any
	errs  []error
}

// fail notes that the facts of a source, a file or a part of the machine,
// could not be gathered. Joined errors are noted one by one.
func (g *gatherer) fail(source string, err error) {
	if err == nil {
		return
	}
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		for _, err := range joined.Unwrap() {
			g.fail(source, err)
		}
		return
	}
	kind := muster.Failed
	if e, ok := errors.AsType[*muster.Error](err); ok {
		kind = e.Kind
	}
	g.errs = append(g.errs, muster.Errorf(kind, "facts from %s: %w", source, err))
}

// merge adds facts unless all together would become too large. Then those of
// this source are left out as a whole: half of them would be misleading.
func (g *gatherer) merge(source string, facts map[string]any) {
	all := maps.Clone(g.facts)
	maps.Copy(all, facts)
	encoded, err := json.Marshal(all)
	switch {
	case err != nil:
		g.fail(source, muster.Errorf(muster.Invalid, "not representable as JSON: %w", err))
	case len(encoded) > MaxSize:
		g.fail(source, muster.Errorf(muster.Full, "all facts would have %d bytes as JSON; at most %d are allowed", len(encoded), MaxSize))
	default:
		g.facts = all
	}
}
