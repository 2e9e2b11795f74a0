//! The Dockerfile, as far as the tests look into it.

use std::collections::BTreeMap;

use crate::text;

#[derive(Debug)]
pub struct Dockerfile {
    /// The arguments before the first stage, with their defaults.
    pub arguments: BTreeMap<String, String>,
    pub stages: Vec<Stage>,
}

#[derive(Debug)]
pub struct Stage {
    pub name: String,
    /// An image or an earlier stage.
    pub from: String,
    pub instructions: Vec<Instruction>,
}

#[derive(Debug)]
pub struct Instruction {
    pub keyword: String,
    pub arguments: String,
}

impl Dockerfile {
    pub fn read() -> Self {
        let (mut arguments, mut stages) = (BTreeMap::new(), Vec::<Stage>::new());
        for instruction in instructions(&text("deploy/Dockerfile")) {
            let words: Vec<_> = instruction.arguments.split_whitespace().collect();
            match (instruction.keyword.as_str(), &words[..], stages.last_mut()) {
                ("FROM", [from, "AS", name], _) => {
                    let from = arguments.iter().fold((*from).to_owned(), |from, (name, value): (&String, &String)| {
                        from.replace(&format!("${{{name}}}"), value)
                    });
                    stages.push(Stage { name: (*name).to_owned(), from, instructions: Vec::new() });
                }
                ("ARG", [argument], None) => {
                    let (name, value) = argument.split_once('=').expect("an argument has a default");
                    arguments.insert(name.to_owned(), value.to_owned());
                }
                (_, _, Some(stage)) => stage.instructions.push(instruction),
                (_, _, None) => panic!("{instruction:?} stands before any stage"),
            }
        }
        Self { arguments, stages }
    }

    pub fn stage(&self, name: &str) -> &Stage {
        let stage = self.stages.iter().find(|stage| stage.name == name);
        stage.unwrap_or_else(|| panic!("the Dockerfile has no stage {name}"))
    }

    /// The instructions of a kind that an image is made by, those of its base first.
    pub fn all(&self, stage: &str, keyword: &str) -> Vec<&str> {
        let stage = self.stage(stage);
        let base = self.stages.iter().find(|base| base.name == stage.from);
        let mut found = base.map(|base| self.all(&base.name, keyword)).unwrap_or_default();
        found.extend(stage.all(keyword));
        found
    }

    /// The environment that an image comes with.
    pub fn environment(&self, stage: &str) -> BTreeMap<String, String> {
        let words = self.all(stage, "ENV").into_iter().flat_map(str::split_whitespace);
        let pair = |word: &str| {
            let (name, value) = word.split_once('=').unwrap_or_else(|| panic!("ENV {word} is not NAME=VALUE"));
            (name.to_owned(), value.to_owned())
        };
        words.map(pair).collect()
    }

    /// The stages that end as an image of a service.
    pub fn images(&self) -> impl Iterator<Item = &Stage> {
        self.stages.iter().filter(|stage| !stage.all("ENTRYPOINT").is_empty())
    }
}

impl Stage {
    /// The instructions of a kind.
    pub fn all(&self, keyword: &str) -> Vec<&str> {
        let of_kind = self.instructions.iter().filter(|instruction| instruction.keyword == keyword);
        of_kind.map(|instruction| instruction.arguments.as_str()).collect()
    }

    /// The last instruction of a kind in its JSON form.
    pub fn words(&self, keyword: &str) -> Vec<String> {
        let text = *self.all(keyword).last().unwrap_or_else(|| panic!("{} has no {keyword}", self.name));
        let start = text.find('[').unwrap_or_else(|| panic!("{keyword} {text} needs a shell"));
        serde_json::from_str(&text[start..]).unwrap_or_else(|error| panic!("{keyword} {text}: {error}"))
    }
}

/// One a line, without comments and line breaks.
fn instructions(text: &str) -> Vec<Instruction> {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let joined = lines.map(|line| line.strip_suffix('\\').map_or(format!("{line}\n"), str::to_owned));
    let split = |line: &str| {
        let (keyword, arguments) = line.split_once(' ').unwrap_or_else(|| panic!("{line} has no arguments"));
        Instruction { keyword: keyword.to_owned(), arguments: arguments.trim().to_owned() }
    };
    joined.collect::<String>().lines().map(split).collect()
}
