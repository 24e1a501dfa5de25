package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"

	"github.com/musterfleet/muster"
)

// SystemSettings is the folder of the settings of this machine.
const SystemSettings = "/etc/muster"

// A Setting is what a settings file says of one key.
type Setting struct {
	Values []string // one, unless the key is a list
	File   string
	Line   int
}

// Origin is where the setting stands.
func (s Setting) Origin() string { return fmt.Sprintf("%s:%d", s.File, s.Line) }

// SettingsFolders are the folders whose muster.yaml and conf.d/*.yaml are read:
// that of the machine, then that of the user. Where MUSTER_CONFIG names one, it
// is the only one.
func SettingsFolders() []string {
	home, err := Home()
	switch {
	case os.Getenv("MUSTER_CONFIG") != "":
		return []string{home}
	case err != nil: // a daemon's user may have no folder
		return []string{SystemSettings}
	}
	return []string{SystemSettings, home}
}

// ReadSettings reads the settings files of the folders. What is read later
// replaces what was read earlier: in each folder muster.yaml comes first, then
// conf.d/*.yaml by name. known are the keys that there are, with dots between
// the levels of the file; true is for lists. Any other key is an error.
func ReadSettings(folders []string, known map[string]bool) (map[string]Setting, error) {
	all := map[string]Setting{}
	for _, folder := range folders {
		more, err := filepath.Glob(filepath.Join(folder, "conf.d", "*.yaml")) // sorted
		if err != nil {
			return nil, muster.Errorf(muster.Invalid, "list settings in %s: %w", folder, err)
		}
		for _, file := range append([]string{filepath.Join(folder, "muster.yaml")}, more...) {
			data, err := readOptional(file)
			if errors.Is(err, fs.ErrPermission) {
				return nil, muster.Errorf(muster.Denied, "read %s: %w", file, err).WithHint("settings hold no secrets: let everybody read them")
			}
			if err != nil {
				return nil, err
			}
			found, err := parseSettings(file, data, known)
			if err != nil {
				return nil, err
			}
			for key, s := range found {
				all[key] = s
			}
		}
	}
	return all, nil
}

// parseSettings reads one settings file; an empty one has no settings.
func parseSettings(file string, data []byte, known map[string]bool) (map[string]Setting, error) {
	root, err := parseYAML(file, data, "settings")
	if err != nil || root == nil {
		return nil, err
	}
	r := settingsReader{file: file, known: known, found: map[string]Setting{}}
	return r.found, r.mapping("", root)
}

type settingsReader struct {
	file  string
	known map[string]bool
	found map[string]Setting
}

// mapping reads a level; above is the key of it.
func (r *settingsReader) mapping(above string, n *yaml.Node) error {
	if n.Kind != yaml.MappingNode {
		return r.errorf(n, "expected a mapping of settings")
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		name, value := n.Content[i], n.Content[i+1]
		key := strings.TrimPrefix(above+"."+name.Value, ".")
		list, known := r.known[key]
		switch {
		case !known && r.level(key):
			if err := r.mapping(key, value); err != nil {
				return err
			}
		case !known:
			return r.errorf(name, "unknown key %.80q", key).WithHint("expected %s", strings.Join(r.near(above), ", "))
		default:
			if err := r.leaf(key, name, value, list); err != nil {
				return err
			}
		}
	}
	return nil
}

func (r *settingsReader) leaf(key string, name, value *yaml.Node, list bool) error {
	if _, twice := r.found[key]; twice {
		return r.errorf(name, "key %q appears twice", key)
	}
	s := Setting{File: r.file, Line: name.Line, Values: []string{}}
	elements := []*yaml.Node{value}
	if list && value.Kind == yaml.SequenceNode {
		elements = value.Content
	}
	for _, e := range elements {
		if e.Kind != yaml.ScalarNode || e.ShortTag() == "!!null" {
			if list {
				return r.errorf(value, "%s: expected a text or a list of texts", key)
			}
			return r.errorf(value, "%s: expected one value", key)
		}
		s.Values = append(s.Values, e.Value)
	}
	r.found[key] = s
	return nil
}

func (r *settingsReader) errorf(n *yaml.Node, format string, args ...any) *muster.Error {
	return muster.Errorf(muster.Invalid, "%s:%d: "+format, append([]any{r.file, max(n.Line, 1)}, args...)...)
}

// level reports whether there are keys below this one.
func (r *settingsReader) level(key string) bool {
	for k := range r.known {
		if strings.HasPrefix(k, key+".") {
			return true
		}
	}
	return false
}

// near returns what may stand on the level below a key, sorted.
func (r *settingsReader) near(above string) []string {
	var names []string
	for k := range r.known {
		rest, ok := strings.CutPrefix("."+k, strings.TrimSuffix("."+above, ".")+".")
		if name, _, _ := strings.Cut(rest, "."); ok && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}
