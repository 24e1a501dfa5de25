package config

import (
	"cmp"
	"os"
	"path/filepath"
	"strings"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/aaa"
)

// A Context is a caller's way to one fleet.
type Context struct {
	Name        string
	Fleet       string // id
	Prefix      string
	URLs        []string
	Credentials aaa.Secret // .creds text
	Identity    aaa.Secret // identity file
	CA          []byte     // PEM, nil for none
}

func (c *Context) fields() []field {
	return []field{{key: "fleet", text: &c.Fleet}, {key: "prefix", text: &c.Prefix}, {key: "urls", list: &c.URLs}}
}

// DefaultContext is the name of the context that is used when none is chosen.
const DefaultContext = "default"

// Home is the folder of a caller's files: MUSTER_CONFIG, or muster in the
// user's folder for configuration.
func Home() (string, error) {
	return userFolder("MUSTER_CONFIG", "XDG_CONFIG_HOME", ".config")
}

// StateHome is the folder of a caller's state.
func StateHome() (string, error) { return userFolder("", "XDG_STATE_HOME", ".local/state") }

func userFolder(own, xdg, fallback string) (string, error) {
	if own != "" && os.Getenv(own) != "" {
		return os.Getenv(own), nil
	}
	// The XDG rules say that a path that is not absolute is ignored.
	if dir := os.Getenv(xdg); filepath.IsAbs(dir) {
		return filepath.Join(dir, "muster"), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", muster.Errorf(muster.Unavailable, "find the user's folder: %w", err).WithHint("set %s", cmp.Or(own, xdg))
	}
	return filepath.Join(home, filepath.FromSlash(fallback), "muster"), nil
}

// OutboxDir is where a context keeps what it could not send yet.
func OutboxDir(name string) (string, error) {
	home, err := StateHome()
	return filepath.Join(home, "outbox", name), err
}

func validateContextName(name string) error {
	if strings.ContainsAny(name, `/\:`) || muster.NodeName(name).Validate() != nil {
		return muster.Errorf(muster.Invalid, "context name %.80q is not allowed; expected letters, digits, '-', '_' and '.'", name)
	}
	return nil
}

// ContextDir is the folder of a context.
func ContextDir(name string) (string, error) {
	if err := validateContextName(name); err != nil {
		return "", err
	}
	home, err := Home()
	return filepath.Join(home, "contexts", name), err
}

// Chosen is the name of the context that the user chose, by MUSTER_CONTEXT or
// with SetCurrent, and says by which; both are empty when none was chosen.
func Chosen() (name, by string, err error) {
	if name := os.Getenv("MUSTER_CONTEXT"); name != "" {
		return name, "MUSTER_CONTEXT", nil
	}
	home, err := Home()
	if err != nil {
		return "", "", err
	}
	file := filepath.Join(home, "current")
	data, err := readOptional(file)
	if name = strings.TrimSpace(string(data)); name == "" {
		return "", "", err
	}
	return name, file, err
}

// Current is the name of the context to use: the given one if any, else that
// of MUSTER_CONTEXT, else the one that was made current.
func Current(chosen string) (string, error) {
	if chosen != "" {
		return chosen, nil
	}
	name, _, err := Chosen()
	return cmp.Or(name, DefaultContext), err
}

// SetCurrent makes a context the one that is used when none is chosen.
func SetCurrent(name string) error {
	dir, err := ContextDir(name)
	if err != nil {
		return err
	}
	if !exists(filepath.Join(dir, "context.yaml")) {
		return noContext(name)
	}
	return WriteFile(filepath.Join(filepath.Dir(filepath.Dir(dir)), "current"), []byte(name+"\n"))
}

func noContext(name string) error {
	return muster.Errorf(muster.NotFound, "there is no context %q", name).
		WithHint("'muster dev' and 'muster init' make one, 'muster context ls' lists yours")
}

// Contexts lists the names of all contexts, sorted.
func Contexts() ([]string, error) {
	home, err := Home()
	if err != nil {
		return nil, err
	}
	found, err := filepath.Glob(filepath.Join(home, "contexts", "*", "context.yaml"))
	if err != nil {
		return nil, muster.Errorf(muster.Invalid, "list contexts in %s: %w", home, err)
	}
	var names []string
	for _, f := range found {
		names = append(names, filepath.Base(filepath.Dir(f)))
	}
	return names, nil
}

// WriteContext writes a context into a folder of its own, which may be handed
// to its caller or be that of ContextDir. An older one there is replaced.
func WriteContext(dir string, c Context) error {
	if err := validateBus(filepath.Join(dir, "context.yaml"), c.Prefix, c.URLs); err != nil {
		return err
	}
	if err := makeFolder(dir); err != nil {
		return err
	}
	text, err := render("How to reach the fleet; nats.creds and identity beside it are secret.", c.fields())
	if err != nil {
		return err
	}
	files := map[string][]byte{"nats.creds": c.Credentials.Reveal(), "identity": c.Identity.Reveal()}
	if len(c.CA) > 0 {
		files["ca.pem"] = c.CA
	} else if err := os.RemoveAll(filepath.Join(dir, "ca.pem")); err != nil {
		return fileError(err, "remove", filepath.Join(dir, "ca.pem"))
	}
	for name, data := range files {
		if err := WriteFile(filepath.Join(dir, name), data); err != nil {
			return err
		}
	}
	return WriteFile(filepath.Join(dir, "context.yaml"), text)
}

// OpenContext reads a context by name; see Current for an empty one.
func OpenContext(chosen string) (Context, error) {
	name, err := Current(chosen)
	if err != nil {
		return Context{}, err
	}
	dir, err := ContextDir(name)
	if err != nil {
		return Context{}, err
	}
	c, err := ReadContext(dir)
	if muster.KindOf(err) == muster.NotFound && !exists(filepath.Join(dir, "context.yaml")) {
		err = noContext(name)
	}
	c.Name = name
	return c, err
}

// ReadContext reads a context from its folder.
func ReadContext(dir string) (Context, error) {
	c := Context{Name: filepath.Base(dir)}
	file := filepath.Join(dir, "context.yaml")
	text, err := readFile(file)
	if err != nil {
		return c, err
	}
	if err := parse(file, text, c.fields()); err != nil {
		return c, err
	}
	if err := validateBus(file, c.Prefix, c.URLs); err != nil {
		return c, err
	}
	creds, err := readFile(filepath.Join(dir, "nats.creds"))
	if err != nil {
		return c, err
	}
	identity, err := readFile(filepath.Join(dir, "identity"))
	if err != nil {
		return c, err
	}
	c.Credentials, c.Identity = aaa.NewSecret(creds), aaa.NewSecret(identity)
	c.CA, err = readOptional(filepath.Join(dir, "ca.pem"))
	return c, err
}
