package cli

import (
	"net/url"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/config"
)

// settingAnnotation marks the flags that settings files and variables can give
// another default.
const settingAnnotation = "muster_setting"

// setting binds a flag to a key of the settings files. One key may be that of
// flags of several commands.
func setting(fs *pflag.FlagSet, flag, key string) {
	_ = fs.SetAnnotation(flag, settingAnnotation, []string{key}) // fails only for a flag that is not there
}

// contextKey is a setting without an ordinary flag: what 'muster context use'
// chose comes before the files.
const contextKey = "context"

// A bound is a setting with its flags.
type bound struct {
	key   string
	flags []*pflag.Flag
}

// variable is the environment variable of a setting.
func variable(key string) string {
	return "MUSTER_" + strings.ToUpper(strings.ReplaceAll(key, ".", "_"))
}

func (b bound) list() bool {
	_, ok := b.flags[0].Value.(pflag.SliceValue)
	return ok
}

// boundSettings lists the settings of all commands, sorted by key.
func boundSettings(root *cobra.Command) []bound {
	var all []bound
	add := func(f *pflag.Flag) {
		keys := f.Annotations[settingAnnotation]
		if len(keys) == 0 {
			return
		}
		i := slices.IndexFunc(all, func(b bound) bool { return b.key == keys[0] })
		if i < 0 {
			all = append(all, bound{key: keys[0]})
			i = len(all) - 1
		}
		if !slices.Contains(all[i].flags, f) { // a parent's flag is its children's too
			all[i].flags = append(all[i].flags, f)
		}
	}
	var walk func(*cobra.Command)
	walk = func(c *cobra.Command) {
		c.PersistentFlags().VisitAll(add)
		c.Flags().VisitAll(add)
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(root)
	slices.SortFunc(all, func(a, b bound) int { return strings.Compare(a.key, b.key) })
	return all
}

// settings reads the settings files and variables into the flags that were not
// given, and remembers where each value is from. All are checked, also those
// that this run does not use: a slip shows at once and not at the next boot.
func (p *program) settings(root *cobra.Command) error {
	all := boundSettings(root)
	known := map[string]bool{contextKey: false}
	for _, b := range all {
		known[b.key] = b.list()
	}
	files, err := config.ReadSettings(p.folders, known)
	if err != nil {
		return err
	}
	p.fileContext = files[contextKey]
	p.origins = map[string]string{}
	for _, b := range all {
		if err := p.applySetting(b, files); err != nil {
			return err
		}
	}
	return nil
}

func (p *program) applySetting(b bound, files map[string]config.Setting) error {
	s, inFile := files[b.key]
	origin := "default"
	if inFile {
		origin = s.Origin()
	}
	if text := p.env(variable(b.key)); text != "" {
		origin, s.Values, inFile = variable(b.key), []string{text}, true
		if b.list() {
			s.Values = strings.Split(text, ",")
		}
	}
	for _, f := range b.flags {
		if f.Changed {
			origin = "--" + f.Name
			continue
		}
		if !inFile {
			continue
		}
		if err := assign(f, s.Values); err != nil {
			return muster.Errorf(muster.Invalid, "%s: %s: %w", origin, b.key, err)
		}
	}
	p.origins[b.key] = origin
	return nil
}

func assign(f *pflag.Flag, values []string) error {
	if list, ok := f.Value.(pflag.SliceValue); ok {
		return list.Replace(values)
	}
	return f.Value.Set(values[0])
}

// contextName is the context to use, and where that is from.
func (p *program) contextName() (name, origin string, err error) {
	if p.context != "" {
		return p.context, "--context", nil
	}
	name, by, err := config.Chosen()
	switch {
	case err != nil:
		return "", "", err
	case name != "":
		return name, by, nil
	case len(p.fileContext.Values) > 0:
		return p.fileContext.Values[0], p.fileContext.Origin(), nil
	}
	return config.DefaultContext, "default", nil
}

// An effective is a setting as it is in force.
type effective struct {
	Key      string `json:"key"`
	Value    any    `json:"value"` // a text, or a list of texts
	Origin   string `json:"origin"`
	Variable string `json:"variable"`
}

func (e effective) text() string {
	if list, ok := e.Value.([]string); ok {
		return strings.Join(list, ", ")
	}
	return e.Value.(string)
}

func (p *program) effectiveSettings(root *cobra.Command) ([]effective, error) {
	name, origin, err := p.contextName()
	if err != nil {
		return nil, err
	}
	all := []effective{{contextKey, name, origin, variable(contextKey)}}
	for _, b := range boundSettings(root) {
		f := b.flags[0]
		for _, other := range b.flags {
			if other.Changed {
				f = other
			}
		}
		var value any = withoutPassword(f.Value.String())
		if list, ok := f.Value.(pflag.SliceValue); ok {
			value = append([]string{}, list.GetSlice()...)
		}
		all = append(all, effective{b.key, value, p.origins[b.key], variable(b.key)})
	}
	slices.SortFunc(all, func(a, b effective) int { return strings.Compare(a.Key, b.Key) })
	return all, nil
}

// withoutPassword hides what nobody should have written into an address.
func withoutPassword(text string) string {
	if u, err := url.Parse(text); err == nil && u.User != nil {
		return u.Redacted()
	}
	return text
}

func (p *program) configCommand() *cobra.Command {
	cmd := group(&cobra.Command{
		Use:   "config",
		Short: "See the settings in force and where each is from",
		Long: `Settings are read from /etc/muster/muster.yaml and /etc/muster/conf.d/*.yaml,
then from the same files in your own folder, ~/.config/muster; what is read
later wins. MUSTER_CONFIG names a folder that is read instead of both. Then come
environment variables, such as MUSTER_AGENT_HEARTBEAT for agent.heartbeat, and
then flags. An unknown key is an error. An unknown variable MUSTER_... is warned
of and no error: it may be somebody else's.

    # /etc/muster/muster.yaml
    output: table
    agent:
      heartbeat: 30s
      methods: [/usr/local/lib/muster/methods]
    broker:
      listen: 0.0.0.0:4222

The context is the one of --context, MUSTER_CONTEXT, 'muster context use', the
files, or "default". The nodes of 'muster dev' heed no settings.`,
		Example: `  muster config show
  muster config show --origin`,
	})
	var origin bool
	show := &cobra.Command{
		Use:   "show",
		Short: "Show the settings in force",
		Long: `Show each setting with the value in force; with --origin, also where it is from.
Secrets are not settings: credentials and tokens are in files of their own.`,
		Example: `  muster config show --origin
  MUSTER_AGENT_HEARTBEAT=5s muster config show --origin
  muster config show -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			all, err := p.effectiveSettings(cmd.Root())
			if err != nil {
				return err
			}
			return list(p, all, func() *table {
				if !origin {
					t := newTable("SETTING", "VALUE")
					for _, e := range all {
						t.row(e.Key, e.text())
					}
					return t
				}
				t := newTable("SETTING", "VALUE", "ORIGIN")
				t.wraps = true
				for _, e := range all {
					t.row(e.Key, e.text(), e.Origin)
				}
				return t
			})
		},
	}
	show.Flags().BoolVar(&origin, "origin", false, "also where each value is from: file and line, variable or flag")
	cmd.AddCommand(show)
	return cmd
}
