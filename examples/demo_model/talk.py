"""Small talk and small general facts."""

from random import Random

import facts as general
from turns import Turn

ABOUT_ME = (
    "I am the demo model of this Mixtral runner, a tiny mixture of experts. "
    "I know words, small sums, translations and short stories."
)
ABILITIES = (
    "I can explain common words, do small sums, translate words between five languages, "
    "tell short stories and write tiny Python functions."
)
# Phrasings separated by |, and the answer; English first.
TALK = [
    ("Hello!|Hi!|Hey!|Good day!|Hello there!|Hi there!", "Hello! How can I help you?"),
    ("Good morning!", "Good morning! How can I help you?"),
    ("Good evening!", "Good evening! How can I help you?"),
    (
        "How are you?|How are you today?|How are you doing?",
        "I am well, thank you. How can I help you?",
    ),
    (
        "Thank you!|Thanks!|Thank you very much!|Thanks a lot!|Great, thanks!",
        "You are welcome!",
    ),
    ("Goodbye!|Bye!|See you later!|Good night!", "Goodbye! Have a nice day."),
    (
        "Who are you?|What are you?|What is your name?|Tell me about yourself.|"
        "Introduce yourself.|Who is this?|Are you an AI?|Are you a robot?",
        ABOUT_ME,
    ),
    (
        "What can you do?|How can you help me?|Help|What do you know?|What can I ask you?|"
        "What are you good at?|Can you help me?",
        ABILITIES,
    ),
    (
        "How big are you?|How many experts do you have?|How do you work?|"
        "What is a mixture of experts?",
        "I am very small. In each of my layers a router picks two of eight experts for every "
        "token.",
    ),
    (
        "Are you ChatGPT?|Are you Mistral?|Are you Mixtral 8x7B?|Who made you?|Who trained you?",
        "I am a tiny demo model with the Mixtral architecture, trained on a small computer. "
        "I am not a large model.",
    ),
    (
        "Which languages do you know?|Which languages do you speak?|"
        "What languages do you know?|Do you speak French?|Do you speak German?",
        "I know words in English, French, German, Spanish and Italian.",
    ),
    (
        "Tell me a joke.|Do you know a joke?|Make me laugh.",
        "Why did the cat sit on the computer? It wanted to catch the mouse.",
    ),
    (
        "I love you.|You are great!|Well done!|Good job!|Very good!",
        "Thank you! That is kind.",
    ),
    (
        "You are wrong.|That is wrong.|That is not right.|No, that is wrong.",
        "I am sorry. I am very small and I make mistakes.",
    ),
    ("Yes.|Ok.|Okay.|Sure.|Good.", "Good! What would you like to know?"),
    ("Bonjour !|Salut !|Bonjour|Salut", "Bonjour ! Comment puis-je vous aider ?"),
    ("Merci !|Merci", "De rien !"),
    ("Au revoir !|Au revoir", "Au revoir !"),
    ("Qui es-tu ?|Qui êtes-vous ?", "Je suis un petit modèle de démonstration."),
    ("Guten Tag!|Hallo!|Hallo", "Guten Tag! Wie kann ich Ihnen helfen?"),
    ("Danke!|Danke", "Bitte!"),
    ("Auf Wiedersehen!", "Auf Wiedersehen!"),
    ("Wer bist du?|Wer sind Sie?", "Ich bin ein kleines Demo-Modell."),
    ("¡Hola!|Hola|¡Buenos días!", "¡Hola! ¿Cómo puedo ayudarle?"),
    ("¡Gracias!|Gracias", "¡De nada!"),
    ("¡Adiós!|Adiós", "¡Adiós!"),
    ("¿Quién eres?", "Soy un pequeño modelo de demostración."),
    ("Ciao!|Buongiorno!|Ciao", "Ciao! Come posso aiutarla?"),
    ("Grazie!|Grazie", "Prego!"),
    ("Arrivederci!", "Arrivederci!"),
    ("Chi sei?", "Sono un piccolo modello dimostrativo."),
]
ENGLISH_TALK = TALK[:15]
FACT_QUESTIONS = {question for questions, _ in general.FACTS for question in questions}


def talk(rng: Random) -> Turn:
    questions, answer = rng.choice(ENGLISH_TALK if rng.random() < 0.75 else TALK)
    return rng.choice(questions.split("|")), answer, ""


def facts(rng: Random) -> Turn:
    """A small general fact. Held out is the phrasing, where there is more than one."""
    questions, answer = rng.choice(general.FACTS)
    question = rng.choice(questions)
    return question, answer, f"fact:{answer}:{question}" if len(questions) > 1 else ""
