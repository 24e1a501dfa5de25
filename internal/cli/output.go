package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"

	"go.yaml.in/yaml/v4"
)

// list prints items in the chosen form; table is called only for a table.
func list[T any](p *program, items []T, table func() *table) error {
	switch p.format {
	case "table":
		return table().write(p.stdout, p.outTerm)
	case "jsonl":
		for _, item := range items {
			if err := p.line(item); err != nil {
				return err
			}
		}
		return nil
	}
	if items == nil {
		items = []T{} // [] and not null
	}
	return p.data(items)
}

// show prints one item in the chosen form; text is called only for a table.
func show(p *program, item any, text func(w io.Writer) error) error {
	switch p.format {
	case "table":
		var b bytes.Buffer
		if err := text(&b); err != nil {
			return err
		}
		_, err := p.stdout.Write(b.Bytes())
		return err
	case "jsonl":
		return p.line(item)
	}
	return p.data(item)
}

// line prints an item as one line of JSON.
func (p *program) line(item any) error {
	b, err := encode(item, "", "")
	if err != nil {
		return err
	}
	_, err = p.stdout.Write(b)
	return err
}

// data prints an item as indented JSON or YAML.
func (p *program) data(item any) error {
	b, err := encode(item, "", "  ")
	if err == nil && p.format == "yaml" {
		b, err = toYAML(b)
	}
	if err != nil {
		return err
	}
	_, err = p.stdout.Write(b)
	return err
}

func encode(item any, prefix, indent string) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false) // this is read by people too
	e.SetIndent(prefix, indent)
	if err := e.Encode(item); err != nil {
		return nil, fmt.Errorf("encode output: %w", err)
	}
	return b.Bytes(), nil
}

// toYAML takes the way over JSON so that both have the same keys in the same
// order.
func toYAML(doc []byte) ([]byte, error) {
	d := json.NewDecoder(bytes.NewReader(doc))
	d.UseNumber()
	n, err := yamlNode(d)
	if err != nil {
		return nil, fmt.Errorf("encode output: %w", err)
	}
	b, err := yaml.Marshal(n)
	if err != nil {
		return nil, fmt.Errorf("encode output: %w", err)
	}
	return b, nil
}

func yamlNode(d *json.Decoder) (*yaml.Node, error) {
	t, err := d.Token()
	if err != nil {
		return nil, err
	}
	scalar := func(tag, value string) (*yaml.Node, error) {
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: tag, Value: value}, nil
	}
	switch v := t.(type) {
	case string:
		return scalar("!!str", v)
	case json.Number:
		if bytes.ContainsAny([]byte(v), ".eE") {
			return scalar("!!float", v.String())
		}
		return scalar("!!int", v.String())
	case bool:
		return scalar("!!bool", fmt.Sprint(v))
	case json.Delim:
		n := &yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq"}
		if v == '{' {
			n = &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map"}
		}
		for d.More() {
			child, err := yamlNode(d) // keys are tokens as well
			if err != nil {
				return nil, err
			}
			n.Content = append(n.Content, child)
		}
		if len(n.Content) == 0 {
			n.Style = yaml.FlowStyle // {} and []
		}
		_, err := d.Token() // the closing bracket
		return n, err
	}
	return scalar("!!null", "null")
}
