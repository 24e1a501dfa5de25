package cli

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/musterfleet/muster/internal/method"
)

// WriteReference writes the reference of all commands and built-in methods as
// Markdown, from their own help and schemas.
func WriteReference(w io.Writer) error {
	p := &program{env: func(string) string { return "" }}
	// The default folder is another for each user; the page shows root's.
	r := &reference{w: w, folder: p.stateDir("")}
	r.print("# Reference\n\nWritten by `make docs` from the program's own help and schemas.\n\n## Commands\n")
	root := p.root()
	r.command(root)
	r.settings(root)
	r.print("\n## Built-in methods\n")
	for _, m := range builtinMethods() {
		r.method(m.Spec())
	}
	return r.err
}

// A reference is a page in the making. It keeps the first error.
type reference struct {
	w      io.Writer
	folder string
	err    error
}

func (r *reference) print(format string, args ...any) {
	if r.err == nil {
		text := fmt.Sprintf(format, args...)
		_, r.err = io.WriteString(r.w, strings.ReplaceAll(text, `"`+r.folder, `"/var/lib/muster`))
	}
}

func (r *reference) command(c *cobra.Command) {
	if c.Hidden || c.Name() == "help" {
		return
	}
	if c.Runnable() || !c.HasParent() {
		r.print("\n### %s\n\n%s\n", c.CommandPath(), c.Short+".")
		if c.Long != "" && c.HasParent() {
			r.print("\n%s\n", c.Long)
		}
		r.print("\n    %s\n", c.UseLine())
		if flags := c.LocalFlags().FlagUsages(); flags != "" {
			r.print("\nFlags:\n\n%s", indent(flags))
		}
		if c.Example != "" {
			r.print("\nExamples:\n\n%s\n", indent(c.Example))
		}
	}
	for _, sub := range c.Commands() {
		r.command(sub)
	}
}

func (r *reference) settings(root *cobra.Command) {
	r.print("\n## Settings\n\nWhat files and variables can set; see `muster config`.\n\n| key | variable | flag |\n| --- | --- | --- |\n")
	r.print("| `%s` | `%s` | `--context` |\n", contextKey, variable(contextKey))
	for _, b := range boundSettings(root) {
		key := "`" + b.key + "`"
		if b.list() {
			key += " (list)"
		}
		r.print("| %s | `%s` | `--%s` |\n", key, variable(b.key), b.flags[0].Name)
	}
}

func (r *reference) method(s method.Spec) {
	r.print("\n### %s\n\n%s", s.Name, s.Description)
	if s.Idempotent {
		r.print(" Idempotent.")
	}
	r.print("\n\nInput:\n\n    %s\n\nOutput:\n\n    %s\n", s.Input, s.Output)
	for _, e := range s.Examples {
		r.print("\n%s:\n\n    %s\n", e.Description, e.Input)
	}
}

// indent makes a block of text one of code.
func indent(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		b.WriteString("    " + line)
	}
	return b.String()
}
