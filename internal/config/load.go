package config

import (
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/go-viper/mapstructure/v2"
	"github.com/knadh/koanf/parsers/yaml"
	"github.com/knadh/koanf/providers/env/v2"
	"github.com/knadh/koanf/providers/file"
	"github.com/knadh/koanf/providers/structs"
	"github.com/knadh/koanf/v2"
)

const envPrefix = "CONTROLD_"

// Load returns the defaults, overridden by the YAML file (empty name: none),
// overridden by the environment's CONTROLD_ variables (empty value: not set).
// An unknown key is an error, and so is a variable that begins as one of our
// sections and names nothing in it. Variables of the commands and of the
// compose file, such as CONTROLD_URL and CONTROLD_PORT_API, are left alone.
func Load(fileName string, environ []string) (Config, error) {
	cfg := Default(variable(environ, envPrefix+"PREFIX"))
	keys, err := settingKeys(cfg)
	if err != nil {
		return Config{}, err
	}
	if fileName != "" {
		if err := loadFile(&cfg, fileName, keys); err != nil {
			return Config{}, fmt.Errorf("configuration %s: %w", fileName, err)
		}
	}
	if err := loadEnviron(&cfg, environ, keys); err != nil {
		return Config{}, fmt.Errorf("environment: %w", err)
	}
	if cfg.PreferredPrimary == "" && len(cfg.Nodes) > 0 {
		cfg.PreferredPrimary = cfg.Nodes[0].Name
	}
	if err := cfg.Validate(); err != nil {
		return Config{}, fmt.Errorf("configuration: %w", err)
	}
	return cfg, nil
}

func variable(environ []string, name string) string {
	for _, e := range environ {
		if value, ok := strings.CutPrefix(e, name+"="); ok {
			return value
		}
	}
	return ""
}

// settingKeys are the dotted names of all settings, read off the type itself.
func settingKeys(cfg Config) ([]string, error) {
	k := koanf.New(".")
	if err := k.Load(structs.Provider(cfg, "koanf"), nil); err != nil {
		return nil, fmt.Errorf("list settings: %w", err)
	}
	return k.Keys(), nil
}

func loadFile(cfg *Config, name string, known []string) error {
	k := koanf.New(".")
	if err := k.Load(file.Provider(name), yaml.Parser()); err != nil {
		return err
	}
	// An empty section flattens to its own name; it sets nothing.
	for _, key := range k.Keys() {
		if slices.Contains(known, key) || k.Get(key) == nil && isSection(key, known) {
			continue
		}
		return unknownKey(key, known)
	}
	// A list in the file replaces the default one; it is not merged into it.
	if k.Exists("nodes") {
		cfg.Nodes = nil
	}
	if k.Exists("pooler.databases") {
		cfg.Pooler.Databases = nil
	}
	return decode(cfg, k)
}

func isSection(key string, known []string) bool {
	return slices.ContainsFunc(known, func(k string) bool { return strings.HasPrefix(k, key+".") })
}

func unknownKey(key string, known []string) error {
	section, _, nested := strings.Cut(key, ".")
	var near []string
	for _, k := range known {
		if nested == isSection(section, known) && (!nested || strings.HasPrefix(k, section+".")) {
			near = append(near, k)
		}
	}
	if len(near) == 0 {
		near = known
	}
	return fmt.Errorf("unknown setting %q; known: %s", key, strings.Join(near, ", "))
}

func loadEnviron(cfg *Config, environ, known []string) error {
	byVariable := map[string]string{}
	for _, key := range known {
		byVariable[variableOf(key)] = key
	}
	// Both are settled before controld runs: the list of nodes has no form as
	// a variable, and CONTROLD_SECRETS_DIR is the host's folder, which compose
	// mounts at secrets_dir.
	delete(byVariable, variableOf("nodes"))
	delete(byVariable, variableOf("secrets_dir"))

	found := map[string]string{} // variable to value
	provider := env.Provider("", env.Opt{
		Prefix:      envPrefix,
		EnvironFunc: func() []string { return environ },
		TransformFunc: func(name, value string) (string, any) {
			if value != "" {
				found[name] = value
			}
			return "", nil
		},
	})
	if _, err := provider.Read(); err != nil {
		return err
	}
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(found)) {
		key, ok := byVariable[name]
		switch {
		case ok:
			errs = append(errs, setOne(cfg, name, key, found[name]))
		case inSection(name, known):
			errs = append(errs, fmt.Errorf("%s is no setting; known: %s", name, strings.Join(siblings(name, byVariable), ", ")))
		}
	}
	return errors.Join(errs...)
}

func variableOf(key string) string {
	return envPrefix + strings.ToUpper(strings.ReplaceAll(key, ".", "_"))
}

// inSection reports whether the variable begins as the name of a section of ours.
func inSection(name string, known []string) bool {
	section, _, _ := strings.Cut(strings.ToLower(strings.TrimPrefix(name, envPrefix)), "_")
	return isSection(section, known)
}

func siblings(name string, byVariable map[string]string) []string {
	section, _, _ := strings.Cut(strings.TrimPrefix(name, envPrefix), "_")
	return slices.DeleteFunc(slices.Sorted(maps.Keys(byVariable)), func(v string) bool {
		return !strings.HasPrefix(v, envPrefix+section+"_")
	})
}

func setOne(cfg *Config, name, key, value string) error {
	k := koanf.New(".")
	if err := k.Set(key, value); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if key == "pooler.databases" {
		cfg.Pooler.Databases = nil
	}
	if err := decode(cfg, k); err != nil {
		return fmt.Errorf("%s=%s: %w", name, value, err)
	}
	return nil
}

// decode sets what k holds and leaves the rest of cfg as it is.
func decode(cfg *Config, k *koanf.Koanf) error {
	return k.UnmarshalWithConf("", cfg, koanf.UnmarshalConf{
		Tag: "koanf",
		DecoderConfig: &mapstructure.DecoderConfig{
			Result:           cfg,
			TagName:          "koanf",
			ErrorUnused:      true,
			WeaklyTypedInput: true, // the environment knows only text
			DecodeHook: mapstructure.ComposeDecodeHookFunc(
				refuseBareDuration,
				mapstructure.StringToTimeDurationHookFunc(),
				splitList,
			),
		},
	})
}

// refuseBareDuration: a number without a unit would be taken for nanoseconds.
func refuseBareDuration(from, to reflect.Type, value any) (any, error) {
	if to == reflect.TypeFor[time.Duration]() && from.Kind() != reflect.String && from != to {
		return nil, fmt.Errorf("%v has no unit; write it as 5s or 500ms", value)
	}
	return value, nil
}

// splitList reads a list from text, as the environment writes it: a,b c.
func splitList(from, to reflect.Type, value any) (any, error) {
	if from.Kind() != reflect.String || to != reflect.TypeFor[[]string]() {
		return value, nil
	}
	return strings.FieldsFunc(value.(string), func(r rune) bool { return r == ',' || r == ' ' }), nil
}
