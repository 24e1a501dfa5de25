package cli

import (
	"io"

	"github.com/spf13/cobra"
)

// deed tells of what a command has done: a person by a line on stderr, a program
// by the item in the chosen form.
func (p *program) deed(item any, format string, args ...any) error {
	return show(p, item, func(io.Writer) error { p.say(format, args...); return nil })
}

// deeds are several of them, of which only what is data is told here: a person
// is told of each when it is done, and what was done before an error is told, too.
type deeds struct {
	p     *program
	items []map[string]any
}

func (d *deeds) add(item map[string]any, format string, args ...any) {
	d.items = append(d.items, item)
	if d.p.format == "table" {
		d.p.say(format, args...)
	}
}

func (d *deeds) tell() error {
	if d.p.format == "table" {
		return nil
	}
	return list(d.p, d.items, nil)
}

// dataless marks commands that print no data, such as daemons.
const dataless = "muster_dataless"

// withoutData marks a command as one that prints no data, so that it refuses
// the flag that says in which form.
func withoutData(c *cobra.Command) *cobra.Command {
	if c.Annotations == nil {
		c.Annotations = map[string]string{}
	}
	c.Annotations[dataless] = ""
	return c
}

// checkData refuses a form of output for a command that has none. A setting is
// for all commands, and for those to which it does not apply no error.
func checkData(c *cobra.Command) error {
	_, none := c.Annotations[dataless]
	if form := c.Flag("output"); none && form != nil && form.Changed {
		return usagef(c, "%s prints no data: --output is not for it", c.CommandPath())
	}
	return nil
}
